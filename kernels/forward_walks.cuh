#pragma once

#include "kernels/attention.h"
#include "kernels/attention_forward.cuh"
#include "kernels/block_walk.cuh"
#include "kernels/window_walk.cuh"

/// The walks of the forward kernels. Besides what key_panel.cuh says, they have Arguments, sums():
/// where the sums over the panel go that `next` told last (NoSums: nowhere), kFewRegisters: whether
/// they need few, and check(), which stops a kernel whose lists are wrong.
namespace tessera::gpu {

template <int kPanel>
class ForwardWindowWalk : public WindowWalk<kPanel> {
 public:
  using Arguments = Reach;
  using Sums = NoSums;
  static constexpr bool kFewRegisters = true;

  __device__ ForwardWindowWalk(const Reach& reach, const GridView& grid, const QueryTile& tile,
                               const LaneRows& rows)
      : WindowWalk<kPanel>(reach, grid, tile, rows) {}

  __device__ NoSums sums() const { return {}; }
  __device__ bool lists_fit() const { return true; }
  __device__ static void check(bool) {}
  __device__ void check() const {}
};
inline Reach reach_of(const AttentionForward& a) {
  return {static_cast<int>(std::min<int64_t>(a.window, kMostReach)),
          static_cast<int>(std::min<int64_t>(a.sink_tokens, kMostReach))};
}

struct SparseArguments {
  Choices choices;
  float* block_lse;  // [groups, tokens, g, kept], or null
  HeadMap map;
};

/// block_lse of the two rows of a lane: the first of four lanes writes.
struct BlockSums {
  static constexpr bool kWanted = true;

  float* block_lse;
  int kept;
  int64_t row[2];  // of block_lse
  int slot[2];     // -1: not asked for
  bool first_of_block;

  __device__ bool wants(int half) const { return slot[half] >= 0; }
  /// `lse`: log2 of the row's sum over the panel. The same lane had the block's panel before.
  __device__ void keep(int half, float lse) {
    if (slot[half] < 0 || threadIdx.x % 4 != 0) return;
    float* const to = block_lse + row[half] * kept + slot[half];
    lse *= kLn2;
    if (!first_of_block) {
      const float larger = fmaxf(*to, lse);
      lse = larger + log1pf(expf(fminf(*to, lse) - larger));
    }
    *to = lse;
  }
};

template <int kPanel, bool kSilent>
class SparseWalkOf : public BlockWalk<kPanel, kSilent> {
 public:
  using Arguments = SparseArguments;
  using Sums = BlockSums;
  static constexpr bool kFewRegisters = false;

  __device__ SparseWalkOf(const SparseArguments& a, const GridView& grid, const QueryTile& tile,
                          const LaneRows& rows)
      : BlockWalk<kPanel, kSilent>(a.choices, grid, tile, rows), a_(a) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t token = tile.place * a.choices.tokens + rows.token[half];
      const bool wanted = a.block_lse != nullptr && rows.real[half];
      row_[half] = wanted ? token * a.map.group_heads + a.map.in_group(rows.head[half]) : -1;
    }
  }

  __device__ BlockSums sums() const {
    return {a_.block_lse,
            a_.choices.kept,
            {row_[0], row_[1]},
            {row_[0] < 0 ? -1 : this->slot(0), row_[1] < 0 ? -1 : this->slot(1)},
            this->first_of_block()};
  }

 private:
  const SparseArguments& a_;
  int64_t row_[2];  // of block_lse; -1: not asked for
};
template <int kPanel>
using SparseWalk = SparseWalkOf<kPanel, false>;
template <int kPanel>
using SilentSparseWalk = SparseWalkOf<kPanel, true>;  // see device_check
inline SparseArguments sparse_arguments(const SparseAttentionForward& a) {
  return {.choices = choices_of(a),
          .block_lse = a.block_lse.empty() ? nullptr : a.block_lse.as<float>().data(),
          .map = head_map(a)};
}

}  // namespace tessera::gpu
