#include "runtime/train/adamw_optimizer.h"

#include "kernels/adamw.h"
#include "kernels/elementwise.h"
#include "runtime/config/train.pb.h"

namespace tessera {

AdamwOptimizer::AdamwOptimizer(const OptimizerConfig& config, ParameterStore& store, Device device)
    : beta1_(config.beta1()),
      beta2_(config.beta2()),
      epsilon_(config.epsilon()),
      weight_decay_(config.weight_decay()) {
  int64_t bytes = 0;
  for (const Parameter& parameter : store.all()) {
    if (!parameter.trained) continue;
    const int64_t tensors = parameter.dtype == DType::kF32 ? 2 : 3;
    bytes += tensors * aligned(parameter.shard.local().elements() * 4);
  }
  buffer_ = Buffer(device, bytes);
  int64_t at = 0;
  for (Parameter& parameter : store.all()) {
    if (!parameter.trained) continue;
    const Shape shape = parameter.shard.local();
    const auto take = [&] {
      const TensorView view = buffer_.view(DType::kF32, shape, at);
      at += aligned(view.bytes());
      return view;
    };
    Slot slot{.parameter = &parameter, .master = parameter.value, .m = take(), .v = take()};
    if (parameter.dtype != DType::kF32) slot.master = take();
    slots_.push_back(slot);
    const auto named = [&](const TensorView& data) {
      return NamedTensor(parameter.name, parameter.shard, data);
    };
    state_.push_back({named(slot.master), named(slot.m), named(slot.v)});
  }
}

void AdamwOptimizer::take_values(Stream& stream) {
  for (const Slot& slot : slots_) {
    if (slot.parameter->dtype != DType::kF32) {
      cast(stream, {.y = slot.master, .x = slot.parameter->value});
    }
  }
}

void AdamwOptimizer::update(Stream& stream, int64_t number, double learning_rate,
                            double gradient_scale) {
  for (const Slot& slot : slots_) {
    adamw(stream, {.value = slot.parameter->value,
                   .master = slot.master,
                   .m = slot.m,
                   .v = slot.v,
                   .gradient = slot.parameter->grad,
                   .step = number,
                   .rate = static_cast<float>(learning_rate),
                   .beta1 = static_cast<float>(beta1_),
                   .beta2 = static_cast<float>(beta2_),
                   .epsilon = static_cast<float>(epsilon_),
                   .decay = slot.parameter->decay ? static_cast<float>(weight_decay_) : 0.0f,
                   .gradient_scale = static_cast<float>(gradient_scale)});
  }
}

}  // namespace tessera
