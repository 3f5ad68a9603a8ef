#include "runtime/train/model_options.h"

#include "runtime/config/train.pb.h"

namespace tessera {

DType value_dtype(const TrainConfig& config) {
  return config.runtime().precision() == RuntimeConfig::F32 ? DType::kF32 : DType::kBF16;
}

Recompute recompute_policy(const TrainConfig& config) {
  return config.runtime().recompute() == RuntimeConfig::BLOCK ? Recompute::kBlock
                                                              : Recompute::kNothing;
}

}  // namespace tessera
