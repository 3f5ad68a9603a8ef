#include "model/step_sums.h"

#include <algorithm>

#include "kernels/elementwise.h"
#include "kernels/gate_stats.h"

namespace tessera {

StepSumsBuffer::StepSumsBuffer(Device device, const Transformer& model) {
  const Shape counts{std::max<int64_t>(1, model.moe_layers()),
                     std::max<int64_t>(1, model.experts())};
  const int64_t small = aligned(GateStats::kSize * 4);
  buffer_ = Buffer(device, 4 * small + counts.elements() * 4);
  views_ = {.gate_losses = buffer_.view(DType::kF32, {3}),
            .gate_stats = buffer_.view(DType::kF32, {GateStats::kSize}, small),
            .router_losses = buffer_.view(DType::kF32, {2}, 2 * small),
            .dropped_pairs = buffer_.view(DType::kF32, {1}, 3 * small),
            .expert_counts = buffer_.view(DType::kF32, counts, 4 * small)};
}

void StepSumsBuffer::clear(Stream& stream) {
  fill(stream, {.x = buffer_.view(DType::kF32, {buffer_.bytes() / 4}), .value = 0});
}

}  // namespace tessera
