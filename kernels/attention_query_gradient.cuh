#pragma once

#include "kernels/attention_backward.cuh"

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
  /// Blocks of threads per multiprocessor, for the number of registers.
  static constexpr int kBlocks = kRowBytes <= 64 ? 2 : 1;
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
#pragma unroll
    for (int first = 0; first < Shape::kPanel / 16; first += kStrips) {
      if (first + kStrips <= view.strips.first || first >= view.strips.end) continue;
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
    }
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

/// Where ds of a token's chosen blocks goes, for walks that have such. Rows leave their sums in
/// shared memory, in turn in one half and the other; after the block's barrier a lane per token
/// adds them up over the heads, in order.
struct GateSums {
  float* of_row;     // [2, rows]
  int* slot;         // [2, rows]
  float* dlog_gate;  // [tokens, kept] of the group
  int kept;
};

template <class T, int kD, class Walk>
__device__ __forceinline__ void add_query_gradients(const BackwardOperands<T>& a,
                                                    const typename Walk::Arguments& arguments,
                                                    const QueryTile& tile,
                                                    const TileRows<T, kD>& queries,
                                                    const TileRows<T, kD>& gradients,
                                                    const TileRows<T, kD> (&panels)[4]) {
  using Shape = QueryGradientShape<T, kD>;
  using Rows = TileRows<T, kD>;
  Rows keys = panels[0];
  Rows values = panels[1];
  Rows other_keys = panels[2];
  Rows other_values = panels[3];
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const bool idle = 16 * warp >= tile.rows();
  const LaneRows rows(tile, warp);
  Walk walk(arguments, a.grid, tile, rows);
  const auto query_row = [&](const T* tensor, int i) -> const T* {
    if (i >= tile.rows()) return nullptr;
    return tensor +
           a.query(tile.origin + tile.first + i / tile.heads, tile.first_head + i % tile.heads);
  };
  const int filled = (tile.rows() + 15) / 16 * 16;
  copy_rows<Shape::kThreads>(queries, filled, a.d, a.q, [&](int i) { return query_row(a.q, i); });
  copy_rows<Shape::kThreads>(gradients, filled, a.d, a.d_o,
                             [&](int i) { return query_row(a.d_o, i); });
  Panel next;
  bool more = walk.next(next);
  const auto copy_panel = [&](const Rows& to, const T* tensor) {
    // Rows of strips that some keys are in: zeros, as ds of 0 does not hide a NaN.
    constexpr int kTogether = 16 * Shape::kStrips;
    copy_rows<Shape::kThreads>(to, (next.count + kTogether - 1) / kTogether * kTogether, a.d,
                               tensor, [&](int i) -> const T* {
                                 return i < next.count ? tensor + a.key(next.row + i, tile.kv_head)
                                                       : nullptr;
                               });
  };
  if (more) {
    copy_panel(keys, a.k);
    copy_panel(values, a.v);
  }
  close_copies();
  wait_for_copies<0>();
  __syncthreads();
  ReadRows<T, kD> q;
  ReadRows<T, kD> d_o;
  q.load(queries, 16 * warp);
  d_o.load(gradients, 16 * warp);
  QueryGradientState<T, kD> state;
  state.start(rows, a);
  const float scale = a.scale * kLog2E;
  while (more) {
    const PanelView view = walk.view(next);
    float totals[2] = {};
    more = walk.next(next);
    if (more) {
      copy_panel(other_keys, a.k);
      copy_panel(other_values, a.v);
    }
    close_copies();
    if (!idle && !view.strips.none()) state.absorb(q, d_o, keys, values, view, scale, totals);
    wait_for_copies<0>();
    __syncthreads();
    swap_places(keys, other_keys);
    swap_places(values, other_values);
  }
  if (!idle) state.finish(tile, warp, {queries.row(16 * warp)}, a);
}

template <class T, int kD, class Walk>
__global__ void __launch_bounds__(QueryGradientShape<T, kD>::kThreads,
                                  QueryGradientShape<T, kD>::kBlocks)
    attention_query_gradient(BackwardOperands<T> a, QueryCut cut,
                             typename Walk::Arguments arguments) {
  using Shape = QueryGradientShape<T, kD>;
  using Rows = TileRows<T, kD>;
  const QueryTile tile = find_query_tile(a.grid, cut, a.groups, a.map);
  if (tile.rows() <= 0) return;
  SharedMemory shared;
  const Rows queries = Rows::take(shared, Shape::kRows);
  const Rows gradients = Rows::take(shared, Shape::kRows);
  const Rows panels[4] = {Rows::take(shared, Shape::kPanel), Rows::take(shared, Shape::kPanel),
                          Rows::take(shared, Shape::kPanel), Rows::take(shared, Shape::kPanel)};
  add_query_gradients<T, kD, Walk>(a, arguments, tile, queries, gradients, panels);
}

template <class T, int kD, template <int> class Walk, class Arguments>
void start_query_gradient(Stream& stream, const BackwardOperands<T>& operands,
                          const Arguments& arguments, size_t groups) {
  using Shape = QueryGradientShape<T, kD>;
  const QueryCut cut = QueryCut::of(operands.map.group_heads, Shape::kRows);
  launch(stream, attention_query_gradient<T, kD, Walk<Shape::kPanel>>,
         query_tiles(operands.grid, cut, groups), Shape::kThreads, Shape::kSharedBytes, operands,
         cut, arguments);
}

}  // namespace tessera::gpu
