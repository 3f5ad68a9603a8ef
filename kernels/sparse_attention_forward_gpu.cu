#include "kernels/attention_forward.cuh"
#include "kernels/block_walk.cuh"
#include "kernels/sparse_attention.h"

namespace tessera::gpu {
namespace {

/// block_lse of the two rows of a lane: the first of four lanes writes.
struct BlockSums {
  static constexpr bool kWanted = true;

  float* to[2];  // null: not asked for
  bool first_of_block;

  __device__ bool wants(int half) const { return to[half] != nullptr; }
  /// `lse`: log2 of the row's sum over the panel. The same lane had the block's panel before.
  __device__ void keep(int half, float lse) {
    if (to[half] == nullptr || threadIdx.x % 4 != 0) return;
    lse *= kLn2;
    if (!first_of_block) {
      const float before = *to[half];
      const float larger = fmaxf(before, lse);
      lse = larger + log1pf(expf(fminf(before, lse) - larger));
    }
    *to[half] = lse;
  }
};

struct SparseArguments {
  Choices choices;
  float* block_lse;  // [groups, tokens, g, kept], or null
  HeadMap map;
};

template <int kPanel>
class SparseWalk : public BlockWalk<kPanel> {
 public:
  using Arguments = SparseArguments;
  using Sums = BlockSums;

  __device__ SparseWalk(const SparseArguments& a, const GridView& grid, const QueryTile& tile,
                        const LaneRows& rows)
      : BlockWalk<kPanel>(a.choices, grid, tile, rows) {
    for (int half = 0; half < 2; ++half) {
      const int64_t row = tile.place * a.choices.tokens + rows.token[half];
      const int64_t head = row * a.map.group_heads + a.map.in_group(rows.head[half]);
      const bool wanted = a.block_lse != nullptr && rows.real[half];
      block_lse_[half] = wanted ? a.block_lse + head * a.choices.kept : nullptr;
    }
  }

  __device__ BlockSums sums() const {
    BlockSums sums;
    for (int half = 0; half < 2; ++half) {
      const bool wanted = block_lse_[half] != nullptr && this->slot(half) >= 0;
      sums.to[half] = wanted ? block_lse_[half] + this->slot(half) : nullptr;
    }
    sums.first_of_block = this->first_of_block();
    return sums;
  }

 private:
  float* block_lse_[2];  // of slot 0; null: not asked for
};

}  // namespace

void sparse_attention_forward(Stream& stream, const SparseAttentionForward& a) {
  const SparseArguments arguments{
      .choices = choices_of(a),
      .block_lse = a.block_lse.empty() ? nullptr : a.block_lse.as<float>().data(),
      .map = head_map(a)};
  start_forward<SparseWalk>(stream, a, arguments, "sparse_attention_forward");
}

}  // namespace tessera::gpu
