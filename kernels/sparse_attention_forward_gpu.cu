#include "kernels/attention_forward.cuh"
#include "kernels/attention_forward_sm90.h"
#include "kernels/forward_walks.cuh"

namespace tessera::gpu {

void sparse_attention_forward(Stream& stream, const SparseAttentionForward& a) {
  sm90_takes(stream, a) ? attention_forward_sm90(stream, a) : attention_forward_sm80(stream, a);
}

void attention_forward_sm80(Stream& stream, const SparseAttentionForward& a) {
  start_forward<SparseWalk>(stream, a, sparse_arguments(a), "sparse_attention_forward");
}

}  // namespace tessera::gpu
