#include "model/step_sums.h"

#include <algorithm>

#include "kernels/core/copy.h"
#include "kernels/elementwise.h"
#include "kernels/gate_stats.h"

namespace tessera {

namespace {

// Enough for each of the sums but the counts.
constexpr int64_t kSmall = Buffer::kAlignment;

StepSums cut(const Buffer& buffer, const Shape& counts) {
  return {.loss = buffer.view(DType::kF64, {1}),
          .hits = buffer.view(DType::kF64, {1}, 6 * kSmall),
          .squares = buffer.view(DType::kF64, {1}, kSmall),
          .gate_losses = buffer.view(DType::kF32, {3}, 2 * kSmall),
          .gate_stats = buffer.view(DType::kF32, {GateStats::kSize}, 3 * kSmall),
          .router_losses = buffer.view(DType::kF32, {2}, 4 * kSmall),
          .dropped_pairs = buffer.view(DType::kF32, {1}, 5 * kSmall),
          .expert_counts = buffer.view(DType::kF32, counts, 7 * kSmall)};
}

TensorView all_of(const Buffer& buffer) {
  return buffer.view(DType::kF32, {buffer.bytes() / 4});
}

}  // namespace

StepSumsBuffer::StepSumsBuffer(Device device, const Transformer& model) {
  const Shape counts{std::max<int64_t>(1, model.moe_layers()),
                     std::max<int64_t>(1, model.experts())};
  buffer_ = Buffer(device, 7 * kSmall + counts.elements() * 4);
  host_ = Buffer::pinned(device, buffer_.bytes());
  views_ = cut(buffer_, counts);
  host_views_ = cut(host_, counts);
}

// The bits of 0 are the same in every dtype.
void StepSumsBuffer::clear(Stream& stream) {
  fill(stream, {.x = all_of(buffer_), .value = 0});
}

const StepSums& StepSumsBuffer::read(Stream& stream) {
  copy(stream, all_of(buffer_), all_of(host_));
  stream.synchronize();
  return host_views_;
}

}  // namespace tessera
