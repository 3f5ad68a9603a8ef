#pragma once

#include <vector>

#include "model/parameter.h"
#include "parallel/named_tensor.h"

namespace tessera {

class OptimizerConfig;

/// AdamW over the trained parameters (kernels/adamw.h), with f32 master weights where the model's
/// are bf16. Weight decay on matrices only. This rank has the state of what it owns of each bucket,
/// and updates that; the other values come from their owners (BucketExchange).
class AdamwOptimizer {
 public:
  /// `store` is allocated with gradients and outlives the optimizer.
  AdamwOptimizer(const OptimizerConfig& config, const ParameterStore& store, Device device);

  /// Copies the values into the masters: after the values were initialised or loaded alone.
  void take_values(Stream& stream);

  struct Update {
    int64_t number = 0;  ///< counts from 1, skipped steps not counted
    double learning_rate = 0;
    double gradient_scale = 1;  ///< for clipping
  };
  /// The owned values of one bucket, from its owned gradients.
  void update(Stream& stream, size_t bucket, const Update& update);

  /// What this rank owns, in boxes of the whole parameters and under their names. All ranks of a
  /// world together hold every element of every trained parameter once.
  struct Owned {
    std::vector<NamedTensor> values;
    std::vector<NamedTensor> masters;  ///< of parameters that are not f32: those are their own
    std::vector<NamedTensor> m;
    std::vector<NamedTensor> v;
  };
  const Owned& owned() const { return owned_; }
  int64_t bytes() const { return buffer_.bytes(); }

 private:
  /// The owned part of one parameter, flat.
  struct Slot {
    TensorView value;
    TensorView gradient;
    TensorView master;  ///< the value itself when that is f32
    TensorView m;
    TensorView v;
    bool decay;
  };
  struct Views;
  void add_slot(const Parameter& parameter, const Bucket& bucket, const Views& state);

  std::vector<std::vector<Slot>> slots_;  ///< of each bucket, in order of declaration
  Owned owned_;
  Buffer buffer_;
  double beta1_;
  double beta2_;
  double epsilon_;
  double weight_decay_;
};

}  // namespace tessera
