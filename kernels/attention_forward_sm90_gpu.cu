#include "kernels/attention_forward_sm90.cuh"
#include "kernels/attention_forward_sm90.h"
#include "kernels/core/capability.h"

namespace tessera::gpu {
namespace {

int multiprocessors(const Stream& stream) {
  int count = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, stream.device().index));
  return count;
}

template <class A>
bool takes(const Stream& stream, const A& a) {
  return kForwardBySm90 && fits_sm90(a) && compute_capability(stream.device().index) == 90;
}

template <template <int> class Walk, class A, class Arguments>
void start(Stream& stream, const A& a, const Arguments& arguments, const char* who) {
  CHECK(fits_sm90(a), who, ": q is ", name_of(a.q.dtype()), " ", a.q.shape(),
        ", expected what "
        "sm90_takes");
  using Panels = Walk<Sm90Shape<64>::kPanel>;
  const int blocks = multiprocessors(stream);
  a.q.shape()[2] == 64 ? start_forward_sm90<64, Panels>(stream, a, arguments, blocks, who)
                       : start_forward_sm90<128, Panels>(stream, a, arguments, blocks, who);
}

}  // namespace

bool sm90_takes(const Stream& stream, const AttentionForward& a) {
  return takes(stream, a);
}
bool sm90_takes(const Stream& stream, const SparseAttentionForward& a) {
  return takes(stream, a);
}

void attention_forward_sm90(Stream& stream, const AttentionForward& a) {
  start<ForwardWindowWalk>(stream, a, reach_of(a), "attention_forward");
}
void attention_forward_sm90(Stream& stream, const SparseAttentionForward& a) {
  start<SilentSparseWalk>(stream, a, sparse_arguments(a), "sparse_attention_forward");
}

}  // namespace tessera::gpu
