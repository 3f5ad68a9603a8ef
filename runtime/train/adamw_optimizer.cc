#include "runtime/train/adamw_optimizer.h"

#include <algorithm>

#include "kernels/adamw.h"
#include "kernels/elementwise.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

// `data` is the flat range of `parameter`'s local block that starts at element `begin`.
void add_boxes(const Parameter& parameter, int64_t begin, const TensorView& data,
               std::vector<NamedTensor>& tensors) {
  int64_t at = 0;
  for (const Box& box : boxes_of_range(parameter.shard, begin, begin + data.elements())) {
    const int64_t elements = box.extents.elements();
    tensors.emplace_back(parameter.name, parameter.shard.whole, box,
                         data.rows(at, elements).reshape(box.extents));
    at += elements;
  }
}

}  // namespace

/// The state of what this rank owns of one bucket, flat; the master is empty when not needed.
struct AdamwOptimizer::Views {
  TensorView m;
  TensorView v;
  TensorView master;
};

AdamwOptimizer::AdamwOptimizer(const OptimizerConfig& config, const ParameterStore& store,
                               Device device)
    : slots_(store.buckets().size()),
      beta1_(config.beta1()),
      beta2_(config.beta2()),
      epsilon_(config.epsilon()),
      weight_decay_(config.weight_decay()) {
  const auto is_f32 = [](const Bucket& bucket) { return bucket.values.dtype() == DType::kF32; };
  int64_t bytes = 0;
  for (const Bucket& bucket : store.buckets()) {
    bytes += (is_f32(bucket) ? 2 : 3) * aligned(bucket.owned_length * 4);
  }
  buffer_ = Buffer(device, bytes);
  int64_t at = 0;
  std::vector<Views> states;
  for (const Bucket& bucket : store.buckets()) {
    const auto take = [&] {
      const TensorView view = buffer_.view(DType::kF32, {bucket.owned_length}, at);
      at += aligned(view.bytes());
      return view;
    };
    Views state{.m = take(), .v = take(), .master = {}};
    if (!is_f32(bucket)) state.master = take();
    states.push_back(state);
  }
  for (const Parameter& parameter : store.all()) {
    if (!parameter.trained) continue;
    add_slot(parameter, store.buckets()[parameter.bucket], states[parameter.bucket]);
  }
}

void AdamwOptimizer::add_slot(const Parameter& parameter, const Bucket& bucket,
                              const Views& state) {
  const int64_t begin = std::max(parameter.begin, bucket.owned_begin);
  const int64_t end = std::min(parameter.begin + parameter.value.elements(), bucket.owned_end());
  if (begin >= end) return;
  const auto of_state = [&](const TensorView& view) {
    return view.rows(begin - bucket.owned_begin, end - begin);
  };
  Slot slot{.value = bucket.values.rows(begin, end - begin),
            .gradient = bucket.gradients.rows(begin, end - begin),
            .master = {},
            .m = of_state(state.m),
            .v = of_state(state.v),
            .decay = parameter.decay};
  const int64_t within = begin - parameter.begin;
  add_boxes(parameter, within, slot.value, owned_.values);
  add_boxes(parameter, within, slot.m, owned_.m);
  add_boxes(parameter, within, slot.v, owned_.v);
  if (state.master.empty()) {
    slot.master = slot.value;
  } else {
    slot.master = of_state(state.master);
    add_boxes(parameter, within, slot.master, owned_.masters);
  }
  slots_[parameter.bucket].push_back(slot);
}

void AdamwOptimizer::take_values(Stream& stream) {
  for (const std::vector<Slot>& bucket : slots_) {
    for (const Slot& slot : bucket) {
      if (slot.value.dtype() != DType::kF32) cast(stream, {.y = slot.master, .x = slot.value});
    }
  }
}

void AdamwOptimizer::update(Stream& stream, size_t bucket, const Update& update) {
  std::vector<AdamW> tensors;
  for (const Slot& slot : slots_[bucket]) {
    tensors.push_back({.value = slot.value,
                       .master = slot.master,
                       .m = slot.m,
                       .v = slot.v,
                       .gradient = slot.gradient,
                       .step = update.number,
                       .rate = static_cast<float>(update.learning_rate),
                       .beta1 = static_cast<float>(beta1_),
                       .beta2 = static_cast<float>(beta2_),
                       .epsilon = static_cast<float>(epsilon_),
                       .decay = slot.decay ? static_cast<float>(weight_decay_) : 0.0f,
                       .gradient_scale = static_cast<float>(update.gradient_scale)});
  }
  adamw(stream, tensors);
}

}  // namespace tessera
