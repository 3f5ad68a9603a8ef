#include "kernels/attention.h"
#include "kernels/window_walk.cuh"

// Causal attention with a window: a tile's panels are those between its window's beginning and its
// last token, and the sink tokens' before. Only panels at these edges need a mask.

namespace tessera::gpu {

void attention_forward(Stream& stream, const AttentionForward& a) {
  start_forward<WindowWalk>(stream, a, reach_of(a), "attention_forward");
}

}  // namespace tessera::gpu
