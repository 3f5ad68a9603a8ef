#pragma once

#include <string>

#include "parallel/shard.h"

namespace tessera {

/// One tensor of a checkpoint: its name in the whole model, and this rank's block of it.
struct NamedTensor {
  std::string name;
  Shard shard;
  TensorView data;  ///< shape shard.local()
};

}  // namespace tessera
