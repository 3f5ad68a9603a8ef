#pragma once

#include <vector>

#include "model/parameter.h"
#include "parallel/named_tensor.h"

namespace tessera {

class OptimizerConfig;

/// AdamW over all trained parameters (kernels/adamw.h), with f32 master weights where the model's
/// are bf16. Weight decay on matrices only.
class AdamwOptimizer {
 public:
  /// `store` is allocated and outlives the optimizer. Masters start at the parameters' values.
  AdamwOptimizer(const OptimizerConfig& config, ParameterStore& store, Device device);

  /// Copies the values into the masters: after the values were initialised or loaded alone.
  void take_values(Stream& stream);
  /// Update `number` (counts from 1, skipped steps not counted). `gradient_scale` is for clipping.
  void update(Stream& stream, int64_t number, double learning_rate, double gradient_scale);

  struct State {
    NamedTensor master;  ///< the value itself when that is f32
    NamedTensor m;
    NamedTensor v;
  };
  /// One per trained parameter, in order of declaration, under the parameter's name.
  const std::vector<State>& state() const { return state_; }
  int64_t bytes() const { return buffer_.bytes(); }

 private:
  struct Slot {
    Parameter* parameter;
    TensorView master;
    TensorView m;
    TensorView v;
  };
  std::vector<Slot> slots_;
  std::vector<State> state_;
  Buffer buffer_;
  double beta1_;
  double beta2_;
  double epsilon_;
  double weight_decay_;
};

}  // namespace tessera
