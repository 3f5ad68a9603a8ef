#include <algorithm>

#include "kernels/attention_backward_sm90.h"
#include "kernels/attention_key_gradient_sm90.cuh"
#include "kernels/attention_query_gradient_sm90.cuh"
#include "kernels/block_source.cuh"
#include "kernels/block_walk.cuh"
#include "kernels/core/capability.h"

// Backward of sparse attention, for Hopper. Rows of tokens that chose a block are copied token by
// token, all heads of the group at once: 64 rows are no more than those that attend to it. One
// group of warps multiplies, and two blocks share a multiprocessor, as a block of keys is 64 of
// them.

namespace tessera::gpu {
namespace {

struct QueryArguments {
  Choices choices;
  float* dlog_gate;  // [groups, tokens, kept]
};

template <int kPanel>
class Walk : public BlockWalk<kPanel, true> {
 public:
  using Arguments = QueryArguments;
  static constexpr bool kChoices = true;

  __device__ Walk(const QueryArguments& a, const GridView& grid, const QueryTile& tile,
                  const LaneRows& rows)
      : BlockWalk<kPanel, true>(a.choices, grid, tile, rows) {}
};

template <int kD>
void start(Stream& stream, const SparseAttentionBackward& a) {
  constexpr const char* kWho = "sparse_attention_backward";
  constexpr int64_t kKeys = KeyGradientSm90<kD, true>::kKeys;
  const Choices choices = choices_of(a);
  const auto operands = backward_operands<BF16>(a, kWho);
  const BackwardMaps tiles = backward_maps(a, 64 / operands.map.group_heads, kWho);
  start_query_gradient_sm90<kD, Walk>(stream, operands,
                                      QueryArguments{choices, a.dlog_gate.as<float>().data()},
                                      tiles, a.groups.size());
  const int64_t panels = (a.grid.block + kKeys - 1) / kKeys;
  const BlockTiles lists = block_tiles(a);
  const PopularBlocks popular =
      popular_blocks(stream, choices, lists, operands.grid, static_cast<int64_t>(a.groups.size()),
                     panels, 2 * kKeys * kD);
  const int64_t slots = popular.slots * panels;
  const BackwardMaps tokens = backward_maps(a, 1, kWho);
  start_key_gradient_sm90<kD, true, BlockSource>(
      stream, operands, {choices, lists, popular}, tokens,
      {.whole = a.grid.max_blocks() * panels, .chunks = slots, .sums = slots}, a.groups.size());
}

}  // namespace

bool sm90_takes(const Stream& stream, const SparseAttentionBackward& a) {
  return kBackwardBySm90 && backward_fits_sm90(a, 2) &&
         compute_capability(stream.device().index) == 90;
}

void attention_backward_sm90(Stream& stream, const SparseAttentionBackward& a) {
  a.q.shape()[2] == 64 ? start<64>(stream, a) : start<128>(stream, a);
}

}  // namespace tessera::gpu
