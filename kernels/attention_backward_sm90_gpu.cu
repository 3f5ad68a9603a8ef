#include <algorithm>

#include "kernels/attention_backward_sm90.h"
#include "kernels/attention_key_gradient_sm90.cuh"
#include "kernels/attention_query_gradient_sm90.cuh"
#include "kernels/core/capability.h"
#include "kernels/window_source.cuh"
#include "kernels/window_walk.cuh"

// Backward of causal attention with a window, for Hopper.

namespace tessera::gpu {
namespace {

template <int kPanel>
class Walk : public WindowWalk<kPanel> {
 public:
  using Arguments = Reach;
  static constexpr bool kChoices = false;
  using WindowWalk<kPanel>::WindowWalk;
};

template <int kD>
void start(Stream& stream, const AttentionBackward& a) {
  constexpr const char* kWho = "attention_backward";
  constexpr int64_t kKeys = KeyGradientSm90<kD, false>::kKeys;
  const Reach reach{static_cast<int>(std::min<int64_t>(a.window, kMostReach)),
                    static_cast<int>(std::min<int64_t>(a.sink_tokens, kMostReach))};
  const auto operands = backward_operands<BF16>(a, kWho);
  const BackwardMaps maps = backward_maps(a, 64 / operands.map.group_heads, kWho);
  start_query_gradient_sm90<kD, Walk>(stream, operands, reach, maps, a.groups.size());
  const int64_t runs = operands.grid.runs.size;
  const SinkPanels sinks = cut_sinks(stream, a, runs, kKeys, 2 * kKeys * kD);
  KeyPassBlocks blocks{.whole = a.grid.keys() / kKeys + runs};
  if (sinks.chunks > 1) {
    blocks.chunks = int64_t{sinks.panels} * sinks.chunks;
    blocks.sums = sinks.panels;
  }
  start_key_gradient_sm90<kD, false, WindowSource>(stream, operands, {reach, sinks}, maps, blocks,
                                                   a.groups.size());
}

}  // namespace

bool sm90_takes(const Stream& stream, const AttentionBackward& a) {
  return kBackwardBySm90 && backward_fits_sm90(a, 1) &&
         compute_capability(stream.device().index) == 90;
}

void attention_backward_sm90(Stream& stream, const AttentionBackward& a) {
  attention_delta(stream, delta_of(a));
  if (a.groups.empty()) return;
  a.q.shape()[2] == 64 ? start<64>(stream, a) : start<128>(stream, a);
}

}  // namespace tessera::gpu
