#pragma once

#include <algorithm>

#include "kernels/attention_sm90.cuh"
#include "kernels/key_panel.cuh"

/// dq, and the gradient of the log gates, by the instructions of Hopper: as
/// attention_query_gradient.cuh, with two groups of warps that have 64 rows each. q and d_o stay in
/// shared memory, panels of 64 keys come through a ring of four stages. Scores and d_o . v of a
/// panel are computed while dq of the one before is still added; one group's exponentials hide
/// behind the other's products.
///
/// Per panel at d = 128: 32 KB from the L2 cache for 128 rows and 6.3 MFLOP, 196 FLOP per byte.
namespace tessera::gpu {

template <int kD>
struct QueryGradientSm90 {
  using Rows = SwizzledRows<kD>;
  static constexpr int kRows = 128;
  static constexpr int kPanel = 64;
  static constexpr int kStages = 4;
  static constexpr int kMultiplying = 256;  // lanes
  static constexpr int kThreads = kMultiplying + kStages * kWarpSize;
  /// Of 504: twice the first and the second.
  static constexpr int kMultiplyingRegisters = 216;
  static constexpr int kCopyingRegisters = 72;
  using Ring = StageRing<kStages>;
  static constexpr int kBytes = (4 + 2 * kStages) * Rows::kBytes;

  Ring ring;

  __device__ Rows q(int group) const { return {ring.memory + group * Rows::kBytes}; }
  __device__ Rows d_o(int group) const { return {ring.memory + (2 + group) * Rows::kBytes}; }
  __device__ Rows keys(int stage) const { return {ring.memory + (4 + 2 * stage) * Rows::kBytes}; }
  __device__ Rows values(int stage) const { return {keys(stage).data + Rows::kBytes}; }
};

/// The sums of a warp's 16 rows.
template <int kD>
struct QuerySumsSm90 {
  float dq[kD / 2];
  float shift[2];  ///< L log2(e)
  float delta[2];

  __device__ void start(const LaneRows& rows, const BackwardOperands<BF16>& a) {
#pragma unroll
    for (float& x : dq) x = 0;
    for (int half = 0; half < 2; ++half) {
      const int64_t at = int64_t{rows.head[half]} * a.tokens + rows.token[half];
      shift[half] = a.lse[at] * kLog2E;
      delta[half] = a.delta[at];
    }
  }
  /// p in place of scores.
  __device__ __forceinline__ void weigh(float (&s)[32], const PanelView& view, float scale) const {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int half = i / 2 % 2;
      s[i] = fast_exp2(fmaf(s[i], scale, view.bias[half] - shift[half]));
    }
    if (view.strips.whole) return;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      // Without branches.
      const SeenKeys& seen = view.seen[i / 2 % 2];
      const int key = column_of_lane(i / 4, i % 4);
      const bool sees = (key <= seen.high) & ((key >= seen.low) | (key < seen.sinks));
      s[i] = sees ? s[i] : 0.0f;
    }
  }
  /// Takes a panel: starts the sums of dq, in a group of products that is under way in the end. All
  /// earlier ones are over then. `behind` is called when the one of the panel before is. Adds ds of
  /// the lane's columns to `totals`, by row.
  template <class Behind>
  __device__ __forceinline__ void absorb(const QueryGradientSm90<kD>& places, int group, int stage,
                                         const PanelView& view, float scale, float (&totals)[2],
                                         const Behind& behind) {
    const SwizzledRows<kD> keys = places.keys(stage);
    float s[32];
    float ds[32];
    hold_sums(s);
    hold_sums(ds);
    start_scores<kD>(s, places.q(group).along_depth(), keys.along_depth());
    start_scores<kD>(ds, places.d_o(group).along_depth(), places.values(stage).along_depth());
    wait_for_products<1>();
    hold_sums(s);
    behind();
    weigh(s, view, scale);
    wait_for_products<0>();
    hold_sums(ds);
    hold_sums(dq);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int half = i / 2 % 2;
      ds[i] = s[i] * (ds[i] - delta[half]);
      totals[half] += ds[i];
    }
    uint32_t factors[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) left_factor(factors[k], ds, k);
    open_products();
    start_sums<kD>(dq, factors, keys.along_columns());
    close_products();
  }
};

/// ds of a chosen block, summed over the heads of each token, which are lanes of one warp: the
/// first of them adds it to the gate of the token's slot.
__device__ __forceinline__ void add_to_gates(float* dlog_gate, int kept, const LaneRows& rows,
                                             int heads, const float (&totals)[2],
                                             const int (&slots)[2], bool first) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = row_sum(totals[half]);
    for (int bit = 4; bit < 4 * heads; bit *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, bit);
    if (lane % (4 * heads) != 0 || !rows.real[half] || slots[half] < 0) continue;
    float* const to = dlog_gate + int64_t{rows.token[half]} * kept + slots[half];
    *to = first ? sum : *to + sum;
  }
}

/// The last warps: each fills its stage with every kStages-th panel.
template <int kD, class Walk>
__device__ __forceinline__ void copy_panels(const BackwardOperands<BF16>& a,
                                            const typename Walk::Arguments& arguments,
                                            const QueryTile& tile, const BackwardMaps& maps,
                                            const QueryGradientSm90<kD>& places) {
  using Shape = QueryGradientSm90<kD>;
  using Rows = typename Shape::Rows;
  const int stage = (static_cast<int>(threadIdx.x) - Shape::kMultiplying) / kWarpSize;
  const bool starts = threadIdx.x % kWarpSize == 0;
  if (stage == 0 && starts) {
    arrive_and_expect(places.ring.kept, 4 * Rows::kBytes);
    for (int group = 0; group < 2; ++group) {
      const int token = tile.origin + tile.first + group * (Rows::kRows / tile.heads);
      places.q(group).copy(maps.q, places.ring.kept, tile.first_head, token);
      places.d_o(group).copy(maps.d_o, places.ring.kept, tile.first_head, token);
    }
  }
  const LaneRows rows(tile, 0);
  Walk walk(arguments, a.grid, tile, rows);
  Panel panel{};
  int turn = 0;
  for (int step = 0; walk.next(panel); ++step) {
    if (step % Shape::kStages != stage || !starts) continue;
    uint64_t* const full = places.ring.full + stage;
    places.ring.wait_until_empty(stage, turn++);
    arrive_and_expect(full, 2 * Rows::kBytes);
    places.keys(stage).copy(maps.k, full, tile.kv_head, panel.row);
    places.values(stage).copy(maps.v, full, tile.kv_head, panel.row);
  }
  if (starts) places.ring.wait_until_empty(stage, turn);
}

/// Zeros behind the last key of a run in a stage, as ds of 0 does not hide a NaN. By all who
/// multiply.
template <int kD>
__device__ __forceinline__ void clear_behind(const QueryGradientSm90<kD>& places, int stage,
                                             int count) {
  constexpr int kLanes = QueryGradientSm90<kD>::kMultiplying;
  const auto lane = static_cast<int>(threadIdx.x);
  places.keys(stage).clear_from(count, lane, kLanes);
  places.values(stage).clear_from(count, lane, kLanes);
  show_to_units();
  sync_named(1, kLanes);
}

/// The others. A Walk is as in attention_query_gradient.cuh, and has also unit_sees and keys_of_run
/// of kernels/window_walk.cuh; a unit is the 64 rows of a group.
template <int kD, class Walk>
__device__ __forceinline__ void add_panels(const BackwardOperands<BF16>& a,
                                           const typename Walk::Arguments& arguments,
                                           const QueryTile& tile,
                                           const QueryGradientSm90<kD>& places) {
  using Shape = QueryGradientSm90<kD>;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int group = warp / 4;
  const int last_row = tile.rows() - 1;
  const bool idle = 64 * group > last_row;
  const LaneRows rows(tile, warp, 64);
  Walk walk(arguments, a.grid, tile, rows);
  QuerySumsSm90<kD> sums;
  sums.start(rows, a);
  const float scale = a.scale * kLog2E;
  int behind = -1;  // stage of a panel whose sums are under way
  const auto give_back_behind = [&] {
    if (behind >= 0) places.ring.give_back(behind);
    behind = -1;
  };
  Panel panel{};
  bool more = walk.next(panel);
  wait_for_phase(places.ring.kept, 0);
  for (int step = 0; more; ++step) {
    const int stage = step % Shape::kStages;
    const int keys = walk.keys_of_run();
    const bool sees = !idle && walk.unit_sees();
    const PanelView view = walk.view();
    int slots[2] = {-1, -1};
    [[maybe_unused]] bool first = true;
    if constexpr (Walk::kChoices) {
      first = walk.first_of_block();
      for (int half = 0; half < 2; ++half) slots[half] = walk.slot(half);
    }
    more = walk.next(panel);
    places.ring.wait_until_full(stage, step / Shape::kStages);
    if (keys < Shape::kPanel) clear_behind(places, stage, keys);
    if (!sees) {
      // Who held a stage while he passes others by would wait for himself.
      wait_for_products<0>();
      give_back_behind();
      places.ring.give_back(stage);
      continue;
    }
    float totals[2] = {};
    sums.absorb(places, group, stage, view, scale, totals, give_back_behind);
    behind = stage;
    if constexpr (Walk::kChoices) {
      const int kept = arguments.choices.kept;
      add_to_gates(arguments.dlog_gate + tile.place * a.tokens * kept, kept, rows, tile.heads,
                   totals, slots, first);
    }
  }
  if constexpr (Walk::kChoices) walk.check();
  wait_for_products<0>();
  hold_sums(sums.dq);
  give_back_behind();
  if (idle) return;
  // By way of the rows' own place: all warps of the group are done with it.
  sync_named(2 + group, 128);
  const SwizzledRows<kD> place = places.q(group);
  const int own = warp % 4 * 16;
  place.put(own, sums.dq, a.scale);
  __syncwarp();
  place.write(own, std::min(16, tile.rows() - 16 * warp), [&](int i) {
    const int row = 16 * warp + i;
    return a.dq +
           a.query(tile.origin + tile.first + row / tile.heads, tile.first_head + row % tile.heads);
  });
}

template <int kD, class Walk>
__global__ void __launch_bounds__(QueryGradientSm90<kD>::kThreads, 1)
    attention_query_gradient_sm90(BackwardOperands<BF16> a, QueryCut cut,
                                  typename Walk::Arguments arguments,
                                  const __grid_constant__ BackwardMaps maps) {
  using Shape = QueryGradientSm90<kD>;
  const QueryTile tile = find_query_tile(a.grid, cut, a.groups, a.map);
  if (tile.rows() <= 0) return;
  SharedMemory shared;
  const Shape places{Shape::Ring::start(shared, Shape::kBytes, Shape::kMultiplying / kWarpSize)};
  if (threadIdx.x < Shape::kMultiplying) {
    take_registers<Shape::kMultiplyingRegisters>();
    add_panels<kD, Walk>(a, arguments, tile, places);
  } else {
    give_registers<Shape::kCopyingRegisters>();
    copy_panels<kD, Walk>(a, arguments, tile, maps, places);
  }
}

template <int kD, template <int> class Walk, class Arguments>
void start_query_gradient_sm90(Stream& stream, const BackwardOperands<BF16>& operands,
                               const Arguments& arguments, const BackwardMaps& maps,
                               size_t groups) {
  using Shape = QueryGradientSm90<kD>;
  const QueryCut cut = QueryCut::of(operands.map.group_heads, Shape::kRows);
  launch(stream, attention_query_gradient_sm90<kD, Walk<Shape::kPanel>>,
         query_tiles(operands.grid, cut, groups), Shape::kThreads,
         Shape::Ring::bytes(Shape::kBytes), operands, cut, arguments, maps);
}

}  // namespace tessera::gpu
