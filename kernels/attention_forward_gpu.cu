#include <algorithm>

#include "kernels/attention_cudnn.h"
#include "kernels/attention_forward.cuh"
#include "kernels/checked_attention.h"
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

/// Plans belong to a thread, as streams do.
CheckedAttention& plans_of_this_thread() {
  thread_local CheckedAttention plans(make_cudnn_attention_plan);
  return plans;
}

}  // namespace

void attention_forward(Stream& stream, const AttentionForward& a) {
  if (cudnn_is_built() && plans_of_this_thread().forward(stream, a)) return;
  own_attention_forward(stream, a);
}

void own_attention_forward(Stream& stream, const AttentionForward& a) {
  const Reach reach{static_cast<int>(std::min<int64_t>(a.window, kMostReach)),
                    static_cast<int>(std::min<int64_t>(a.sink_tokens, kMostReach))};
  start_forward<Walk>(stream, a, reach, "attention_forward");
}

}  // namespace tessera::gpu
