#include <algorithm>

#include "kernels/attention_backward_sm90.h"
#include "kernels/attention_key_gradient.cuh"
#include "kernels/attention_query_gradient.cuh"
#include "kernels/block_source.cuh"
#include "kernels/block_walk.cuh"
#include "kernels/core/cuda_check.h"
#include "kernels/sparse_attention.h"

// Backward of sparse attention. dq goes through a tile's blocks as forward does, dk and dv of a
// block through the tokens of block_source.cuh.

namespace tessera::gpu {
namespace {

struct QueryArguments {
  Choices choices;
  float* dlog_gate;  // [groups, tokens, kept]
};

template <int kPanel>
class Walk : public BlockWalk<kPanel> {
 public:
  using Arguments = QueryArguments;
  static constexpr bool kChoices = true;

  __device__ Walk(const QueryArguments& a, const GridView& grid, const QueryTile& tile,
                  const LaneRows& rows)
      : BlockWalk<kPanel>(a.choices, grid, tile, rows) {}
};

}  // namespace

void sparse_attention_backward(Stream& stream, const SparseAttentionBackward& a) {
  attention_delta(stream, delta_of(a));
  CUDA_CHECK(cudaMemsetAsync(a.dlog_gate.data(), 0, static_cast<size_t>(a.dlog_gate.bytes()),
                             static_cast<cudaStream_t>(stream.handle())));
  if (a.groups.empty()) return;
  sm90_takes(stream, a) ? attention_backward_sm90(stream, a) : attention_backward_sm80(stream, a);
}

void attention_backward_sm80(Stream& stream, const SparseAttentionBackward& a) {
  constexpr const char* kWho = "sparse_attention_backward";
  float* const dlog_gate = a.dlog_gate.as<float>().data();
  const Choices choices = choices_of(a);
  with_float_type(a.q.dtype(), [&]<class T>() {
    const BackwardOperands<T> operands = backward_operands<T>(a, kWho);
    with_head_dim(a.q.shape()[2], [&]<int kD>() {
      start_query_gradient<T, kD, Walk>(stream, operands, QueryArguments{choices, dlog_gate},
                                        a.groups.size());
      constexpr int64_t kKeys = KeyGradientShape<T, kD>::kKeys;
      const int64_t panels = (a.grid.block + kKeys - 1) / kKeys;
      const BlockTiles lists = block_tiles(a);
      const PopularBlocks popular =
          popular_blocks(stream, choices, lists, operands.grid,
                         static_cast<int64_t>(a.groups.size()), panels, 2 * kKeys * kD);
      const int64_t slots = popular.slots * panels;
      start_key_gradient<T, kD, BlockSource>(
          stream, operands, {choices, lists, popular},
          {.whole = a.grid.max_blocks() * panels, .chunks = slots, .sums = slots}, a.groups.size());
    });
  });
}

}  // namespace tessera::gpu
