#pragma once

#include <algorithm>

#include "kernels/attention_backward.cuh"
#include "kernels/key_panel.cuh"

/// dq, and the gradient of the log gates: a block of threads owns a QueryTile, 16 rows per warp,
/// and takes the panels of keys that a Walk of the forward pass names. Scores and d_o . v are
/// computed some strips of 16 keys at a time and never leave the registers, nor does dq; q and d_o
/// stay in shared memory. The next panel is copied while one is worked on.
///
/// Per panel of 64 keys at d = 128 in bf16: 32 KB from the L2 cache for 128 rows and 6.3 MFLOP, 196
/// FLOP per byte; each warp reads 64 KB of shared memory for 192 products m16n8k16.
namespace tessera::gpu {

/// Sizes by the bytes of a row, so that a block needs at most 140 KB of shared memory.
template <class T, int kD>
struct QueryGradientShape {
  static constexpr int kRowBytes = kD * static_cast<int>(sizeof(T));
  static constexpr int kRows = kRowBytes <= 256 ? 128 : (kRowBytes <= 512 ? 64 : 32);
  static constexpr int kPanel = kRowBytes <= 256 ? 64 : (kRowBytes <= 512 ? 32 : 16);
  static constexpr int kThreads = kRows / 16 * kWarpSize;
  /// Strips of a panel that a warp works on at once.
  static constexpr int kStrips = kPanel / 16 < 2 ? 1 : 2;

  static constexpr int64_t kSharedBytes = 2 * shared_bytes_of<T>(TileRows<T, kD>::elements(kRows)) +
                                          4 * shared_bytes_of<T>(TileRows<T, kD>::elements(kPanel));
};

/// The sums of a warp's 16 rows.
template <class T, int kD>
struct QueryGradientState {
  using Shape = QueryGradientShape<T, kD>;
  static constexpr int kStrips = Shape::kStrips;

  float dq[kD / 8][4];
  float shift[2];  ///< L log2(e)
  float delta[2];

  __device__ void start(const LaneRows& rows, const BackwardOperands<T>& a) {
    clear(dq);
    for (int half = 0; half < 2; ++half) {
      const int64_t at = int64_t{rows.head[half]} * a.tokens + rows.token[half];
      shift[half] = a.lse[at] * kLog2E;
      delta[half] = a.delta[at];
    }
  }

  /// Takes a panel; adds ds of the lane's columns to `totals`, by row.
  __device__ __forceinline__ void absorb(const ReadRows<T, kD>& q, const ReadRows<T, kD>& d_o,
                                         const TileRows<T, kD>& keys, const TileRows<T, kD>& values,
                                         const PanelView& view, float scale, float (&totals)[2]) {
    for_products<T, Shape::kPanel / 16, kStrips>([&](int first) {
      if (first + kStrips <= view.strips.first || first >= view.strips.end) return;
      float p[2 * kStrips][4];
      float ds[2 * kStrips][4];
      clear(p);
      clear(ds);
      add_strips<kStrips>(p, q, TileRows<T, kD>{keys.row(16 * first)});
      add_strips<kStrips>(ds, d_o, TileRows<T, kD>{values.row(16 * first)});
#pragma unroll
      for (int n = 0; n < 2 * kStrips; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int half = i / 2;
          const int key = 16 * first + column_of_lane(n, i);
          float weight = fast_exp2(fmaf(p[n][i], scale, view.bias[half] - shift[half]));
          if (!view.strips.whole && !view.seen[half].sees(key)) weight = 0;
          ds[n][i] = weight * (ds[n][i] - delta[half]);
          totals[half] += ds[n][i];
        }
      }
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        add_weighted(dq, ds[2 * strip], ds[2 * strip + 1], keys, 16 * (first + strip));
      }
    });
  }

  /// Writes dq, by way of `place`: 16 rows of shared memory that are this warp's alone.
  __device__ void finish(const QueryTile& tile, int warp, const TileRows<T, kD>& place,
                         const BackwardOperands<T>& a) const {
    put_rows(place, dq, a.scale);
    __syncwarp();
    write_rows(place, std::min(16, tile.rows() - 16 * warp), a.d, [&](int i) {
      const int row = 16 * warp + i;
      return a.dq + a.query(tile.origin + tile.first + row / tile.heads,
                            tile.first_head + row % tile.heads);
    });
  }
};

/// ds of chosen blocks, summed over the heads: rows leave their sums in shared memory, in turn in
/// one half and the other; behind the block's barrier a lane per token adds them up in order.
struct GateSums {
  float* of_row;  // [2, rows]
  int* slot;      // [2, rows]
  int rows;
  int turn = 0;

  __device__ static GateSums take(SharedMemory& shared, int rows) {
    return {shared.take<float>(2 * rows), shared.take<int>(2 * rows), rows};
  }
  static constexpr int64_t bytes(int rows) {
    return shared_bytes_of<float>(2 * rows) + shared_bytes_of<int>(2 * rows);
  }

  /// Of the two rows of each lane, whose columns are those of four.
  __device__ void keep(const LaneRows& of_lane, int warp, const float (&totals)[2],
                       const int (&slots)[2]) const {
    for (int half = 0; half < 2; ++half) {
      const float sum = row_sum(totals[half]);
      if (threadIdx.x % 4 != 0 || !of_lane.real[half]) continue;
      const int row = turn * rows + 16 * warp + row_of_lane(half);
      of_row[row] = sum;
      slot[row] = slots[half];
    }
  }
  /// `to`: [tokens, kept] of the group, from the tile's first token on. `first`: nothing is there
  /// yet, and nobody waits to read it.
  __device__ void add(const QueryTile& tile, float* to, int kept, bool first) {
    const auto token = static_cast<int>(threadIdx.x);
    if (token < tile.count) {
      const int row = turn * rows + token * tile.heads;
      float sum = 0;
      for (int head = 0; head < tile.heads; ++head) sum += of_row[row + head];
      float* const at = to + int64_t{token} * kept + slot[row];
      if (slot[row] >= 0) *at = first ? sum : *at + sum;
    }
    turn = 1 - turn;
  }
};

/// Memory of a block of threads.
template <class T, int kD>
struct QueryGradientPlaces {
  TileRows<T, kD> q;
  TileRows<T, kD> d_o;
  TileRows<T, kD> keys[2];
  TileRows<T, kD> values[2];
};

template <class T, int kD>
__device__ __forceinline__ void copy_queries(const TileRows<T, kD>& to, const T* tensor,
                                             const QueryTile& tile, const BackwardOperands<T>& a) {
  constexpr int kThreads = QueryGradientShape<T, kD>::kThreads;
  const auto row = [&](int i) -> const T* {
    if (i >= tile.rows()) return nullptr;
    const int token = tile.origin + tile.first + i / tile.heads;
    return tensor + a.query(token, tile.first_head + i % tile.heads);
  };
  copy_rows<kThreads>(to, (tile.rows() + 15) / 16 * 16, a.d, tensor, row);
}
/// Zeros behind the last key, as ds of 0 does not hide a NaN.
template <class T, int kD>
__device__ __forceinline__ void copy_keys(const TileRows<T, kD>& to, const T* tensor,
                                          const Panel& panel, int kv_head,
                                          const BackwardOperands<T>& a) {
  using Shape = QueryGradientShape<T, kD>;
  constexpr int kTogether = 16 * Shape::kStrips;
  const int count = (panel.count + kTogether - 1) / kTogether * kTogether;
  copy_rows<Shape::kThreads>(to, count, a.d, tensor, [&](int i) -> const T* {
    return i < panel.count ? tensor + a.key(panel.row + i, kv_head) : nullptr;
  });
}

/// One tile. A Walk is one of kernels/key_panel.cuh with Arguments; where it has kChoices, also
/// slot, first_of_block and check as BlockWalk, and its arguments `dlog_gate` and `choices`.
template <class T, int kD, class Walk>
__device__ __forceinline__ void add_query_gradients(const BackwardOperands<T>& a,
                                                    const typename Walk::Arguments& arguments,
                                                    const QueryTile& tile,
                                                    const QueryGradientPlaces<T, kD>& places,
                                                    GateSums& gate_sums, bool first_part) {
  using Rows = TileRows<T, kD>;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const bool idle = 16 * warp >= tile.rows();
  const LaneRows rows(tile, warp);
  Walk walk(arguments, a.grid, tile, rows);
  Panel next{};
  copy_queries(places.q, a.q, tile, a);
  copy_queries(places.d_o, a.d_o, tile, a);
  bool more = walk.next(next);
  Rows keys = places.keys[0];
  Rows values = places.values[0];
  Rows other_keys = places.keys[1];
  Rows other_values = places.values[1];
  if (more) {
    copy_keys(keys, a.k, next, tile.kv_head, a);
    copy_keys(values, a.v, next, tile.kv_head, a);
  }
  close_copies();
  ReadRows<T, kD> q;
  ReadRows<T, kD> d_o;
  q.load(places.q, 16 * warp);
  d_o.load(places.d_o, 16 * warp);
  QueryGradientState<T, kD> state;
  state.start(rows, a);
  const float scale = a.scale * kLog2E;
  wait_for_copies<0>();
  __syncthreads();
  while (more) {
    const PanelView view = walk.view();
    int slots[2] = {-1, -1};
    [[maybe_unused]] bool first = first_part;
    if constexpr (Walk::kChoices) {
      first = first && walk.first_of_block();
      for (int half = 0; half < 2; ++half) slots[half] = walk.slot(half);
    }
    more = walk.next(next);
    if (more) {
      copy_keys(other_keys, a.k, next, tile.kv_head, a);
      copy_keys(other_values, a.v, next, tile.kv_head, a);
    }
    close_copies();
    float totals[2] = {};
    if (!idle && !view.strips.none()) state.absorb(q, d_o, keys, values, view, scale, totals);
    if constexpr (Walk::kChoices) {
      gate_sums.keep(rows, warp, totals, slots);
    }
    wait_for_copies<0>();
    __syncthreads();
    if constexpr (Walk::kChoices) {
      const int kept = arguments.choices.kept;
      const int64_t token = tile.place * a.tokens + tile.origin + tile.first;
      gate_sums.add(tile, arguments.dlog_gate + token * kept, kept, first);
    }
    swap_places(keys, other_keys);
    swap_places(values, other_values);
  }
  if constexpr (Walk::kChoices) walk.check();
  if (!idle) state.finish(tile, warp, {places.q.row(16 * warp)}, a);
}

/// With choices one block of threads does all parts of a group's heads, one after the other: so
/// that it alone adds to the gates of its tokens.
template <class T, int kD, class Walk>
__global__ void __launch_bounds__(QueryGradientShape<T, kD>::kThreads, 1)
    attention_query_gradient(BackwardOperands<T> a, QueryCut cut,
                             typename Walk::Arguments arguments) {
  using Shape = QueryGradientShape<T, kD>;
  using Rows = TileRows<T, kD>;
  SharedMemory shared;
  const auto take = [&](int rows) { return Rows::take(shared, rows); };
  const QueryGradientPlaces<T, kD> places{take(Shape::kRows),
                                          take(Shape::kRows),
                                          {take(Shape::kPanel), take(Shape::kPanel)},
                                          {take(Shape::kPanel), take(Shape::kPanel)}};
  GateSums gate_sums = GateSums::take(shared, Walk::kChoices ? Shape::kRows : 0);
  if constexpr (Walk::kChoices) {
    for (int part = 0; part < cut.parts; ++part) {
      const auto place = static_cast<int>(blockIdx.y);
      const QueryTile tile = query_tile(a.grid, cut, a.groups, a.map, place, part);
      if (tile.rows() <= 0) return;
      if (part > 0) __syncthreads();
      add_query_gradients<T, kD, Walk>(a, arguments, tile, places, gate_sums, part == 0);
    }
  } else {
    const QueryTile tile = find_query_tile(a.grid, cut, a.groups, a.map);
    if (tile.rows() <= 0) return;
    add_query_gradients<T, kD, Walk>(a, arguments, tile, places, gate_sums, true);
  }
}

template <class T, int kD, template <int> class Walk, class Arguments>
void start_query_gradient(Stream& stream, const BackwardOperands<T>& operands,
                          const Arguments& arguments, size_t groups) {
  using Shape = QueryGradientShape<T, kD>;
  constexpr bool kChoices = Walk<Shape::kPanel>::kChoices;
  const QueryCut cut = QueryCut::of(operands.map.group_heads, Shape::kRows);
  dim3 grid = query_tiles(operands.grid, cut, groups);
  if (kChoices) grid.y = static_cast<unsigned>(groups);
  launch(stream, attention_query_gradient<T, kD, Walk<Shape::kPanel>>, grid, Shape::kThreads,
         Shape::kSharedBytes + GateSums::bytes(kChoices ? Shape::kRows : 0), operands, cut,
         arguments);
}

}  // namespace tessera::gpu
