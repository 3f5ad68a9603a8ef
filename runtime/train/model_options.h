#pragma once

#include "model/block.h"

namespace tessera {

class TrainConfig;

/// What the runtime part of a configuration means to the model.
DType value_dtype(const TrainConfig& config);
Recompute recompute_policy(const TrainConfig& config);

}  // namespace tessera
