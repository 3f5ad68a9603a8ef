#pragma once

#include "kernels/attention_copier_sm90.cuh"
#include "kernels/core/wgmma_sm90.cuh"
#include "kernels/forward_walks.cuh"
#include "kernels/online_softmax.cuh"

/// Forward of attention, dense and sparse, with the instructions of Hopper, after FlashAttention-3
/// (Shah et al. 2024, arXiv:2407.08608). A block of threads per multiprocessor takes tile after
/// tile of 128 rows. Two warp groups have 64 rows each, queries and sums in registers; a warp of a
/// third one has keys and values copied into a ring of panels of 64, and runs ahead over the ends
/// of tiles. A group starts the scores of a panel and the weighted values of the one before, and
/// weighs the former while the latter is under way; besides, one group weighs while the other
/// multiplies.
///
/// There is no call of a function in the kernel, so wrong lists stop it without a sentence on a
/// GPU: for one call, ptxas has all products wait for each other.
///
/// A panel of 64 keys at d = 128: 32 KB from the L2 cache for 4.2 MFLOP. Registers of a lane of
/// these groups at d = 128: 64 sums, 32 of queries, 32 scores, 16 packed weights.
namespace tessera::gpu {

/// What a warp group does with a tile. Numbers of lanes are locals of `work`, each by itself, so
/// that the compiler keeps them in registers.
template <int kD, class Walk>
struct Sm90Rows {
  using Shape = Sm90Shape<kD>;
  using Memory = Sm90Memory<kD>;
  using Softmax = OnlineSoftmax<Shape::kPanel>;
  using Sums = typename Walk::Sums;
  using Queries = uint32_t[kD / 16][4];
  using Outputs = float[kD / 2];
  using Scores = float[Shape::kPanel / 2];
  using Weights = uint32_t[Shape::kPanel / 16][4];
  /// Whether there are registers to look for the next panel while products are under way.
  static constexpr bool kLookBeside = Walk::kFewRegisters;

  const ForwardOperands<BF16>& a;
  const Memory& memory;
  int warp;

  /// `step` counts the panels of all tiles, `turn` is the parity of the queries' phase. Returns
  /// whether the walk's lists fit.
  __device__ __forceinline__ bool work(const QueryTile& tile,
                                       const typename Walk::Arguments& arguments, uint32_t turn,
                                       int& step) const {
    const LaneRows rows(tile, warp, Shape::kGroupRows);
    Walk walk(arguments, a.grid, tile, rows);
    const bool idle = 16 * warp / Shape::kGroupRows * Shape::kGroupRows >= tile.rows();
    Upcoming up;
    up.more = step_on(walk);
    look(up, walk, idle);
    Queries q;
    load_queries(q, turn);
    Softmax softmax;
    softmax.start();
    if (a.sink_logits != nullptr) softmax.add_sinks(rows, a.sink_logits);
    Outputs o;
    clear(o);
    while (up.there) {
      if (!up.sees) {
        pass(step++);
        look(up, walk, idle);
        continue;
      }
      // The first panel after some that are of no use, by itself.
      Scores s;
      Weights p;
      PanelView view = up.view;
      Sums sums = up.sums;
      int last = step++;
      start_scores(s, q, last);
      if constexpr (kLookBeside) look(up, walk, idle);
      wait_for_products<0>();
      hold_sums(s);
      give_back(memory.empty_keys, last);
      weigh(softmax, s, view, sums);
      pack(p, s);
      if constexpr (!kLookBeside) look(up, walk, idle);
      // Others with the values of the one before. These keep their stage, so that not as many
      // panels as there are stages may be passed over in between: the last of them never came.
      int passed = 0;
      while (up.there && (up.sees || passed < Shape::kStages - 1)) {
        const int now = step++;
        if (!up.sees) {
          pass(now);
          look(up, walk, idle);
          ++passed;
          continue;
        }
        passed = 0;
        view = up.view;
        sums = up.sums;
        start_scores(s, q, now);
        start_values(o, p, last);
        if constexpr (kLookBeside) look(up, walk, idle);
        wait_for_products<1>();
        hold_sums(s);
        give_back(memory.empty_keys, now);
        const float2 keep = weigh(softmax, s, view, sums);
        softmax.stay_before();
        end_values(o, last);
        scale(o, keep);
        pack(p, s);
        if constexpr (!kLookBeside) look(up, walk, idle);
        last = now;
      }
      start_values(o, p, last);
      end_values(o, last);
    }
    if (!idle) finish(tile, softmax, o);
    return walk.lists_fit();
  }

 private:
  /// The next panel of the walk, which itself is one ahead: what it reads from memory for a panel
  /// has a panel's time to come.
  struct Upcoming {
    PanelView view;
    Sums sums;
    bool there;
    bool sees;  ///< this group
    bool more;  ///< of the walk
  };
  __device__ __forceinline__ static void look(Upcoming& up, Walk& walk, bool idle) {
    up.there = up.more;
    if (!up.more) return;
    up.view = walk.view();
    up.sums = walk.sums();
    up.sees = !idle && walk.unit_sees();
    up.more = step_on(walk);
  }
  __device__ __forceinline__ static bool step_on(Walk& walk) {
    Panel next;  // where it is in memory only the copying warp needs to know
    return walk.next(next);
  }
  __device__ __forceinline__ void give_back(uint64_t* empty, int of_step) const {
    if (threadIdx.x % kWarpSize == 0) arrive(empty + Memory::stage(of_step));
  }
  /// Of a panel that is of no use: an arrival before it is full could be one too many.
  __device__ __forceinline__ void pass(int of_step) const {
    wait_for_phase_or_stop(memory.full_keys + Memory::stage(of_step), Memory::parity(of_step));
    give_back(memory.empty_keys, of_step);
    wait_for_phase_or_stop(memory.full_values + Memory::stage(of_step), Memory::parity(of_step));
    give_back(memory.empty_values, of_step);
  }
  __device__ __forceinline__ void load_queries(Queries& q, uint32_t turn) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    wait_for_phase_or_stop(memory.full_queries, turn);
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      load_matrices(q[k], memory.queries + Memory::offset(16 * warp + lane % 16, 2 * k + lane / 16,
                                                          Shape::kRows));
    }
    __syncwarp();
    if (lane == 0) arrive(memory.empty_queries);
  }
  /// s = q k^T.
  __device__ __forceinline__ void start_scores(Scores& s, const Queries& q, int of_step) const {
    wait_for_phase_or_stop(memory.full_keys + Memory::stage(of_step), Memory::parity(of_step));
    const uint64_t keys = matrix_descriptor(memory.panel_keys(of_step), 16);
    hold_sums(s);
    open_products();
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
      // 16 of the depth on are 32 bytes of a line.
      multiply_64<Shape::kPanel, false>(s, q[k], keys + k / 4 * (Shape::kBoxBytes >> 4) + k % 4 * 2,
                                        k > 0);
    }
    close_products();
    hold_sums(s);
  }
  /// o += p v.
  __device__ __forceinline__ void start_values(Outputs& o, const Weights& p, int of_step) const {
    wait_for_phase_or_stop(memory.full_values + Memory::stage(of_step), Memory::parity(of_step));
    const uint64_t values = matrix_descriptor(memory.panel_values(of_step), Shape::kBoxBytes);
    hold_sums(o);
    open_products();
#pragma unroll
    for (int k = 0; k < Shape::kPanel / 16; ++k) {
      multiply_64<kD, true>(o, p[k], values + k * (16 * 128 >> 4), true);
    }
    close_products();
    hold_sums(o);
  }
  __device__ __forceinline__ void end_values(Outputs& o, int of_step) const {
    wait_for_products<0>();
    hold_sums(o);
    give_back(memory.empty_values, of_step);
  }
  __device__ __forceinline__ static void clear(Outputs& o) {
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) o[i] = 0;
  }
  /// Returns the factors of what was before, of the lane's two rows.
  __device__ __forceinline__ float2 weigh(Softmax& softmax, Scores& s, const PanelView& view,
                                          Sums& sums) const {
    if (!view.strips.whole) softmax.hide(s, view);
    const float upper = softmax.weigh(0, s, view.bias[0], a.scale, sums);
    const float lower = softmax.weigh(1, s, view.bias[1], a.scale, sums);
    return make_float2(upper, lower);
  }
  __device__ __forceinline__ static void scale(Outputs& o, const float2& keep) {
    if (!__any_sync(kWholeWarp, keep.x != 1 || keep.y != 1)) return;
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) o[i] *= i / 2 % 2 == 0 ? keep.x : keep.y;
  }
  /// The weights as the left factor of a product.
  __device__ __forceinline__ static void pack(Weights& p, const Scores& s) {
#pragma unroll
    for (int k = 0; k < Shape::kPanel / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[k][i] = pack_bf16(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
    }
  }
  __device__ __forceinline__ void finish(const QueryTile& tile, const Softmax& softmax,
                                         const Outputs& o) const;
};

/// Writes o and lse. Each warp has 16 rows of `results` to itself.
template <int kD, class Walk>
__device__ __forceinline__ void Sm90Rows<kD, Walk>::finish(const QueryTile& tile,
                                                           const Softmax& softmax,
                                                           const Outputs& o) const {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float lse[2];
  __syncwarp();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = row_sum(softmax.sum[half]);
    const float inverse = 1.0f / total;
    lse[half] = (softmax.largest[half] + log2f(total)) * kLn2;
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      const int at = Memory::offset(16 * warp + row_of_lane(half), n, Shape::kRows) + lane % 4 * 4;
      *reinterpret_cast<uint32_t*>(memory.results + at) =
          pack_bf16(o[4 * n + 2 * half] * inverse, o[4 * n + 2 * half + 1] * inverse);
    }
  }
  // Row r of the warp is that of lane 4 (r % 8): lane r writes.
  const float lower = __shfl_sync(kWholeWarp, lse[0], lane % 8 * 4);
  const float upper = __shfl_sync(kWholeWarp, lse[1], lane % 8 * 4);
  const int count = std::min(16, tile.rows() - 16 * warp);
  const auto token_of = [&](int i) {
    return int64_t{tile.origin} + tile.first + (16 * warp + i) / tile.heads;
  };
  const auto head_of = [&](int i) {
    return int64_t{tile.first_head} + (16 * warp + i) % tile.heads;
  };
  if (lane < count) a.lse[head_of(lane) * a.tokens + token_of(lane)] = lane < 8 ? lower : upper;
  __syncwarp();
  // Whole rows of o, 16 bytes per lane.
  constexpr int kPacks = kD / Pack<BF16>::kSize;
  for (int i = lane; i < count * kPacks; i += kWarpSize) {
    const int row = i / kPacks;
    const int pack = i % kPacks;
    const unsigned char* const from =
        memory.results + Memory::offset(16 * warp + row, pack, Shape::kRows);
    store_pack(a.o + (token_of(row) * a.map.heads + head_of(row)) * kD + pack * Pack<BF16>::kSize,
               load_pack(reinterpret_cast<const BF16*>(from)));
  }
}

template <int kD, class Walk>
__global__ void __launch_bounds__(Sm90Shape<kD>::kThreads, 1)
    attention_forward_sm90_tiles(const __grid_constant__ ForwardOperands<BF16> a,
                                 const __grid_constant__ typename Walk::Arguments arguments,
                                 const __grid_constant__ TileRange range,
                                 const __grid_constant__ Sm90Maps maps) {
  using Shape = Sm90Shape<kD>;
  const auto memory = Sm90Memory<kD>::take();
  if (threadIdx.x == 0) memory.start();
  // Rows of `queries` behind those that boxes fill.
  const int first = a.cut.tokens * a.cut.heads;
  constexpr int kPacks = kD / Pack<BF16>::kSize;
  for (int i = first * kPacks + static_cast<int>(threadIdx.x); i < Shape::kRows * kPacks;
       i += Shape::kThreads) {
    const int at = Sm90Memory<kD>::offset(i / kPacks, i % kPacks, Shape::kRows);
    store_pack(reinterpret_cast<BF16*>(memory.queries + at), Pack<BF16>{});
  }
  __syncthreads();
  // From one lane: so the compiler knows that warps do not part.
  const int warp = __shfl_sync(kWholeWarp, static_cast<int>(threadIdx.x) / kWarpSize, 0);
  if (warp < Shape::kWarps) {
    take_registers<Shape::kMultiplying>();
    const Sm90Rows<kD, Walk> rows{a, memory, warp};
    uint32_t turn = 0;
    int step = 0;
    bool lists_fit = true;
    range.visit(a, [&](const QueryTile& tile) {
      lists_fit &= rows.work(tile, arguments, turn, step);
      turn ^= 1;
    });
    Walk::check(lists_fit);
  } else {
    give_registers<Shape::kCopying>();
    if (warp > Shape::kWarps) return;
    Sm90Copier<kD, Walk> copier{a, memory, maps, static_cast<int>(threadIdx.x) % kWarpSize};
    range.visit(a, [&](const QueryTile& tile) { copier.copy_tile(tile, arguments); });
  }
}

/// Whether the rows of a call fit, by shapes alone.
template <class A>
bool fits_sm90(const A& a) {
  const HeadMap map = head_map(a);
  const int64_t d = a.q.shape()[2];
  if (a.q.dtype() != DType::kBF16 || (d != 64 && d != 128)) return false;
  if (a.q.shape()[0] == 0 || a.k.shape()[0] == 0 || a.groups.empty()) return false;
  const QueryCut cut = QueryCut::of(map.group_heads, Sm90Shape<64>::kRows);
  if (cut.heads * cut.parts != map.group_heads) return false;
  return std::all_of(a.groups.begin(), a.groups.end(),
                     [&](int32_t group) { return map.count_of(group) == map.group_heads; });
}

template <int kD, class Walk, class A>
void start_forward_sm90(Stream& stream, const A& a, const typename Walk::Arguments& arguments,
                        int multiprocessors, const char* who) {
  using Shape = Sm90Shape<kD>;
  const auto operands = forward_operands<BF16, kD>(a, who);
  const QueryCut& cut = operands.cut;
  const auto map = [&](const ConstTensorView& x, int64_t y, int64_t z) {
    const Extents3 shape{x.shape()[2], x.shape()[1], x.shape()[0]};
    return tensor_map(x, shape, {64, y, z}, who);
  };
  const Sm90Maps maps{map(a.q, cut.heads, cut.tokens), map(a.k, 1, Shape::kPanel),
                      map(a.v, 1, Shape::kPanel)};
  const dim3 tiles = query_tiles(operands.grid, cut, a.groups.size());
  const TileRange range{static_cast<int>(tiles.x), static_cast<int>(tiles.x * tiles.y)};
  launch(stream, attention_forward_sm90_tiles<kD, Walk>,
         dim3(static_cast<unsigned>(std::min(range.tiles, multiprocessors))), Shape::kThreads,
         Shape::kSharedBytes, operands, arguments, range, maps);
}

}  // namespace tessera::gpu
