#include "kernels/attention_cudnn.h"
#include "kernels/attention_forward.cuh"
#include "kernels/attention_forward_sm90.h"
#include "kernels/checked_attention.h"
#include "kernels/forward_walks.cuh"

namespace tessera::gpu {
namespace {

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
  sm90_takes(stream, a) ? attention_forward_sm90(stream, a) : attention_forward_sm80(stream, a);
}

void attention_forward_sm80(Stream& stream, const AttentionForward& a) {
  start_forward<ForwardWindowWalk>(stream, a, reach_of(a), "attention_forward");
}

}  // namespace tessera::gpu
