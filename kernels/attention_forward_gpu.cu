#include <algorithm>

#include "kernels/attention.h"
#include "kernels/attention_forward.cuh"
#include "kernels/window_walk.cuh"

namespace tessera::gpu {
namespace {

template <int kPanel>
class Walk : public WindowWalk<kPanel> {
 public:
  using Arguments = Reach;
  using Sums = NoSums;
  static constexpr bool kFewRegisters = true;
  using WindowWalk<kPanel>::WindowWalk;

  __device__ NoSums sums() const { return {}; }
  __device__ void check() const {}
};

}  // namespace

void attention_forward(Stream& stream, const AttentionForward& a) {
  const Reach reach{static_cast<int>(std::min<int64_t>(a.window, kMostReach)),
                    static_cast<int>(std::min<int64_t>(a.sink_tokens, kMostReach))};
  start_forward<Walk>(stream, a, reach, "attention_forward");
}

}  // namespace tessera::gpu
