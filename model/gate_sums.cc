#include "model/gate_sums.h"

#include "kernels/core/copy.h"
#include "kernels/elementwise.h"
#include "kernels/gate_measure.h"

namespace tessera {

GateSumsBuffer::GateSumsBuffer(Device device, const Transformer& model) {
  const Shape figures{model.layers(), model.global_groups(), GateFigures::kSize};
  const Shape maps{model.layers(), model.global_groups(), kMapBins, kMapBins + 1};
  const int64_t first = aligned(figures.elements() * 4);
  buffer_ = Buffer(device, first + maps.elements() * 4);
  host_ = Buffer::pinned(device, buffer_.bytes());
  const auto cut = [&](const Buffer& buffer) -> GateSums {
    return {.figures = buffer.view(DType::kF32, figures),
            .maps = buffer.view(DType::kF32, maps, first)};
  };
  views_ = cut(buffer_);
  host_views_ = cut(host_);
}

GateSums GateSumsBuffer::views(bool maps) const {
  return {.figures = views_.figures, .maps = maps ? views_.maps : TensorView{}};
}

void GateSumsBuffer::clear(Stream& stream, bool maps) {
  fill(stream, {.x = views_.figures, .value = 0});
  if (maps) fill(stream, {.x = views_.maps, .value = 0});
}

GateSums GateSumsBuffer::start_read(Stream& stream, bool maps) {
  copy(stream, views_.figures, host_views_.figures);
  if (maps) copy(stream, views_.maps, host_views_.maps);
  return {.figures = host_views_.figures, .maps = maps ? host_views_.maps : TensorView{}};
}

}  // namespace tessera
