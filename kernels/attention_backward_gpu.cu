#include <algorithm>

#include "kernels/attention.h"
#include "kernels/attention_backward_sm90.h"
#include "kernels/attention_key_gradient.cuh"
#include "kernels/attention_query_gradient.cuh"
#include "kernels/window_source.cuh"
#include "kernels/window_walk.cuh"

// Backward of causal attention with a window.

namespace tessera::gpu {
namespace {

template <int kPanel>
class Walk : public WindowWalk<kPanel> {
 public:
  using Arguments = Reach;
  static constexpr bool kChoices = false;
  using WindowWalk<kPanel>::WindowWalk;
};

}  // namespace

void attention_backward(Stream& stream, const AttentionBackward& a) {
  sm90_takes(stream, a) ? attention_backward_sm90(stream, a) : attention_backward_sm80(stream, a);
}

void attention_backward_sm80(Stream& stream, const AttentionBackward& a) {
  attention_delta(stream, delta_of(a));
  const Reach reach{static_cast<int>(std::min<int64_t>(a.window, kMostReach)),
                    static_cast<int>(std::min<int64_t>(a.sink_tokens, kMostReach))};
  with_float_type(a.q.dtype(), [&]<class T>() {
    const BackwardOperands<T> operands = backward_operands<T>(a, "attention_backward");
    with_head_dim(a.q.shape()[2], [&]<int kD>() {
      start_query_gradient<T, kD, Walk>(stream, operands, reach, a.groups.size());
      constexpr int64_t kKeys = KeyGradientShape<T, kD>::kKeys;
      const int64_t runs = operands.grid.runs.size;
      const SinkPanels sinks = cut_sinks(stream, a, runs, kKeys, 2 * kKeys * kD);
      KeyPassBlocks blocks{.whole = a.grid.keys() / kKeys + runs};
      if (sinks.chunks > 1) {
        blocks.chunks = int64_t{sinks.panels} * sinks.chunks;
        blocks.sums = sinks.panels;
      }
      start_key_gradient<T, kD, WindowSource>(stream, operands, {reach, sinks}, blocks,
                                              a.groups.size());
    });
  });
}

}  // namespace tessera::gpu
