#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/attention_tile.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/key_panel.cuh"

/// Forward of attention, dense and sparse: a block of threads owns a QueryTile, 16 rows per warp,
/// and takes the panels of keys that a Walk names, in ascending order of position, with the online
/// softmax of Milakov & Gimelshein (arXiv:1805.02867) in registers. The next panel's keys and
/// values are copied while a panel is worked on. Scores never leave the registers; warps pass over
/// panels that none of their rows sees, and compute only the strips that some row sees.
///
/// Per panel of 64 keys at d = 128 in bf16: 32 KB from the L2 cache for 128 rows and 4.2 MFLOP, 128
/// FLOP per byte; each warp reads 32 KB of shared memory for 128 products m16n8k16.
namespace tessera::gpu {

inline constexpr float kHidden = -std::numeric_limits<float>::infinity();

/// Sizes by the bytes of a row, so that two panels fit beside the queries into 163 KB.
template <class T, int kD>
struct ForwardShape {
  static constexpr int kRowBytes = kD * static_cast<int>(sizeof(T));
  static constexpr int kRows = kRowBytes <= 512 ? 128 : 64;
  static constexpr int kPanel = kRowBytes <= 256 ? 64 : (kRowBytes <= 512 ? 32 : 16);
  static constexpr int kThreads = kRows / 16 * kWarpSize;
  /// Blocks of threads per multiprocessor, for the number of registers: 128 or 255.
  static constexpr int blocks(bool few_registers) {
    return few_registers && kRowBytes <= 128 ? 2 : 1;
  }
  /// Queries stay in registers where there are enough of these.
  using Queries =
      std::conditional_t<kRowBytes == 256 && sizeof(T) == 2, KeptRows<T, kD>, ReadRows<T, kD>>;

  static constexpr int64_t kSharedBytes = shared_bytes_of<T>(TileRows<T, kD>::elements(kRows)) +
                                          4 * shared_bytes_of<T>(TileRows<T, kD>::elements(kPanel));
};

template <class T>
struct ForwardOperands {
  T* o;                      // [tokens, heads, d]
  float* lse;                // [heads, tokens]
  const T* q;                // [tokens, heads, d]
  const T* k;                // [keys, kv_heads, d]
  const T* v;                // [keys, kv_heads, d]
  const float* sink_logits;  // [heads], or null
  GridView grid;
  GroupList groups;
  QueryCut cut;
  HeadMap map;
  int64_t tokens;
  int kv_heads;
  int d;
  float scale;  // log2(e) times the scale of the scores: exponentials are powers of two
};

/// The online softmax of a warp's 16 rows: o, the largest score and the sum of a lane's columns.
template <class T, int kD, int kStrips>
struct ForwardState {
  float o[kD / 8][4];
  float largest[2];  ///< in units of log2(e)
  float sum[2];

  __device__ void start() {
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      for (int i = 0; i < 4; ++i) o[n][i] = 0;
    }
    for (int half = 0; half < 2; ++half) {
      largest[half] = kHidden;
      sum[half] = 0;
    }
  }
  /// The sink is a key with score a_h and no value.
  __device__ void add_sinks(const LaneRows& rows, const float* sink_logits) {
    for (int half = 0; half < 2; ++half) {
      largest[half] = sink_logits[rows.head[half]] * kLog2E;
      sum[half] = threadIdx.x % 4 == 0 && largest[half] != kHidden ? 1.0f : 0.0f;
    }
  }

  /// Takes a panel. `sums` is told each row's sum over it, if it wants to know (BlockSums).
  template <class Left, class Sums>
  __device__ void absorb(const Left& q, const TileRows<T, kD>& keys, const TileRows<T, kD>& values,
                         const PanelView& view, float scale, Sums& sums) {
    float s[2 * kStrips][4];
#pragma unroll
    for (int n = 0; n < 2 * kStrips; ++n) {
      for (int i = 0; i < 4; ++i) s[n][i] = 0;
    }
    if (view.strips.whole) {
      add_strips<kStrips>(s, q, keys);
    } else {
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        if (strip < view.strips.first || strip >= view.strips.end) continue;
        add_strip(s[2 * strip], s[2 * strip + 1], q, keys, 16 * strip);
      }
      hide(s, view);
    }
    float keep[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) keep[half] = weigh(half, s, view, scale, sums);
    if (__any_sync(kWholeWarp, keep[0] != 1 || keep[1] != 1)) {
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
        for (int i = 0; i < 4; ++i) o[n][i] *= keep[i / 2];
      }
    }
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      if (strip < view.strips.first || strip >= view.strips.end) continue;
      add_weighted(o, s[2 * strip], s[2 * strip + 1], values, 16 * strip);
    }
  }

  /// Writes o and lse, by way of `place`: 16 rows of shared memory that are this warp's alone.
  __device__ void finish(const QueryTile& tile, int warp, const TileRows<T, kD>& place,
                         const ForwardOperands<T>& a);

 private:
  __device__ static void hide(float (&s)[2 * kStrips][4], const PanelView& view) {
#pragma unroll
    for (int n = 0; n < 2 * kStrips; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!view.seen[i / 2].sees(column_of_lane(n, i))) s[n][i] = kHidden;
      }
    }
  }

  /// Turns the scores of one of the lane's rows into weights. Returns the factor of what was
  /// before.
  template <class Sums>
  __device__ float weigh(int half, float (&s)[2 * kStrips][4], const PanelView& view, float scale,
                         Sums& sums) {
    float top = kHidden;
#pragma unroll
    for (int n = 0; n < 2 * kStrips; ++n) {
      top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    }
    top = fmaf(row_max(top), scale, view.bias[half]);
    const float now = fmaxf(largest[half], top);
    const float shift = now == kHidden ? 0 : now;  // no key was seen yet, by a row without a sink
    const float keep = fast_exp2(largest[half] - shift);
    largest[half] = now;
    bool apart = false;
    float apart_sum = 0;
    if constexpr (Sums::kWanted) {
      // Far below what was seen before all weights may be 0, but their sum is asked for.
      apart = top - shift < -100;
      if (__any_sync(kWholeWarp, sums.wants(half) && apart)) {
        apart_sum = row_sum(add_exponentials(half, s, scale, view.bias[half] - top));
      }
    }
    const float offset = view.bias[half] - shift;
    float total = 0;
#pragma unroll
    for (int n = 0; n < 2 * kStrips; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        s[n][i] = fast_exp2(fmaf(s[n][i], scale, offset));
        total += s[n][i];
      }
    }
    if constexpr (Sums::kWanted) {
      if (__any_sync(kWholeWarp, sums.wants(half))) {
        const float of_row = row_sum(total);
        const float lse = apart ? log2f(apart_sum) + top : log2f(of_row) + shift;
        sums.keep(half, lse - view.bias[half]);
      }
    }
    sum[half] = sum[half] * keep + total;
    return keep;
  }
  __device__ static float add_exponentials(int half, const float (&s)[2 * kStrips][4], float scale,
                                           float offset) {
    float total = 0;
#pragma unroll
    for (int n = 0; n < 2 * kStrips; ++n) {
      total += fast_exp2(fmaf(s[n][2 * half], scale, offset));
      total += fast_exp2(fmaf(s[n][2 * half + 1], scale, offset));
    }
    return total;
  }
};

template <class T, int kD, int kStrips>
__device__ void ForwardState<T, kD, kStrips>::finish(const QueryTile& tile, int warp,
                                                     const TileRows<T, kD>& place,
                                                     const ForwardOperands<T>& a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float totals[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    totals[half] = row_sum(sum[half]);
    const float inverse = 1.0f / totals[half];
    T* const row = place.row(row_of_lane(half)) + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      const float x = o[n][2 * half] * inverse;
      const float y = o[n][2 * half + 1] * inverse;
      if constexpr (sizeof(T) == 2) {
        *reinterpret_cast<uint32_t*>(row + 8 * n) = pack_bf16(x, y);
      } else {
        *reinterpret_cast<float2*>(row + 8 * n) = make_float2(x, y);
      }
    }
  }
  // Row r of the warp is that of lane 4 (r % 8): lane r writes.
  const float lower = __shfl_sync(kWholeWarp, largest[0] + log2f(totals[0]), lane % 8 * 4);
  const float upper = __shfl_sync(kWholeWarp, largest[1] + log2f(totals[1]), lane % 8 * 4);
  const int count = std::min(16, tile.rows() - 16 * warp);
  if (lane < count) {
    const int row = 16 * warp + lane;
    const int64_t token = tile.origin + tile.first + row / tile.heads;
    const int64_t head = tile.first_head + row % tile.heads;
    a.lse[head * a.tokens + token] = (lane < 8 ? lower : upper) * kLn2;
  }
  __syncwarp();
  // Whole rows of o, 16 bytes per lane.
  const int packs = a.d / Pack<T>::kSize;
  for (int i = lane; i < count * packs; i += kWarpSize) {
    const int row = 16 * warp + i / packs;
    const int64_t token = tile.origin + tile.first + row / tile.heads;
    const int64_t head = tile.first_head + row % tile.heads;
    const int column = i % packs * Pack<T>::kSize;
    store_pack(a.o + (token * a.map.heads + head) * a.d + column,
               load_pack(place.row(i / packs) + column));
  }
}

/// For walks that do not want sums over panels.
struct NoSums {
  static constexpr bool kWanted = false;
};

/// Copies a panel's keys or values.
template <class Shape, class T, int kD>
__device__ __forceinline__ void copy_panel(const TileRows<T, kD>& to, const Panel& panel,
                                           const T* tensor, int kv_head,
                                           const ForwardOperands<T>& a) {
  const int64_t stride = int64_t{a.kv_heads} * a.d;
  const T* const first = tensor + panel.row * stride + int64_t{kv_head} * a.d;
  // Rows of a strip that some keys are in: zeros, as weights of 0 do not hide a NaN.
  copy_rows<Shape::kThreads>(to, (panel.count + 15) / 16 * 16, a.d, tensor, [&](int i) -> const T* {
    return i < panel.count ? first + i * stride : nullptr;
  });
}

/// Walks: forward_walks.cuh.
template <class T, int kD, class Walk>
__global__ void __launch_bounds__(ForwardShape<T, kD>::kThreads,
                                  ForwardShape<T, kD>::blocks(Walk::kFewRegisters))
    attention_forward_tile(ForwardOperands<T> a, typename Walk::Arguments walk_arguments) {
  using Shape = ForwardShape<T, kD>;
  using Rows = TileRows<T, kD>;
  const QueryTile tile = find_query_tile(a.grid, a.cut, a.groups, a.map);
  if (tile.rows() <= 0) return;
  SharedMemory shared;
  const Rows queries = Rows::take(shared, Shape::kRows);
  constexpr int kPanelSize = Rows::elements(Shape::kPanel);
  T* const panels = shared.take<T>(4 * kPanelSize);  // keys and values of two
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const bool idle = 16 * warp >= tile.rows();
  const LaneRows rows(tile, warp);
  Walk walk(walk_arguments, a.grid, tile, rows);
  copy_rows<Shape::kThreads>(queries, (tile.rows() + 15) / 16 * 16, a.d, a.q,
                             [&](int i) -> const T* {
                               if (i >= tile.rows()) return nullptr;
                               const int64_t token = tile.origin + tile.first + i / tile.heads;
                               const int64_t head = tile.first_head + i % tile.heads;
                               return a.q + (token * a.map.heads + head) * a.d;
                             });
  Panel next{};
  bool more = walk.next(next);
  int stage = 0;
  const auto copy_next = [&] {
    T* const place = panels + 2 * kPanelSize * stage;
    copy_panel<Shape>(Rows{place}, next, a.k, tile.kv_head, a);
    copy_panel<Shape>(Rows{place + kPanelSize}, next, a.v, tile.kv_head, a);
    close_copies();
  };
  if (more) copy_next();
  close_copies();
  wait_for_copies<0>();
  __syncthreads();
  typename Shape::Queries q;
  if (!idle) q.load(queries, 16 * warp);
  ForwardState<T, kD, Shape::kPanel / 16> state;
  state.start();
  if (a.sink_logits != nullptr) state.add_sinks(rows, a.sink_logits);
  while (more) {
    const PanelView view = walk.view();
    typename Walk::Sums sums = walk.sums();
    more = walk.next(next);
    T* const place = panels + 2 * kPanelSize * stage;
    stage ^= 1;
    if (more) copy_next();
    if (!idle && !view.strips.none()) {
      state.absorb(q, Rows{place}, Rows{place + kPanelSize}, view, a.scale, sums);
    }
    wait_for_copies<0>();
    __syncthreads();
  }
  if (!idle) state.finish(tile, warp, {queries.row(16 * warp)}, a);
  walk.check();
}

/// Of the arguments of a forward kernel.
template <class T, int kD, class A>
ForwardOperands<T> forward_operands(const A& a, const char* who) {
  const HeadMap map = head_map(a);
  const int64_t d = a.q.shape()[2];
  const auto data = [&](const ConstTensorView& x) {
    const T* const numbers = x.template as<T>().data();
    CHECK(in_packs(numbers, d), who, ": a tensor's address is not a multiple of 16");
    return numbers;
  };
  data(a.o);
  return {
      .o = a.o.template as<T>().data(),
      .lse = a.lse.template as<float>().data(),
      .q = data(a.q),
      .k = data(a.k),
      .v = data(a.v),
      .sink_logits = a.sink_logits.empty() ? nullptr : a.sink_logits.template as<float>().data(),
      .grid = view_of(a.grid),
      .groups = group_list(a.groups, who),
      .cut = QueryCut::of(map.group_heads, ForwardShape<T, kD>::kRows),
      .map = map,
      .tokens = a.q.shape()[0],
      .kv_heads = static_cast<int>(a.k.shape()[1]),
      .d = static_cast<int>(d),
      .scale = a.scale * kLog2E};
}

template <template <int> class Walk, class A, class Arguments>
void start_forward(Stream& stream, const A& a, const Arguments& arguments, const char* who) {
  with_float_type(a.q.dtype(), [&]<class T>() {
    with_head_dim(a.q.shape()[2], [&]<int kD>() {
      using Shape = ForwardShape<T, kD>;
      const ForwardOperands<T> operands = forward_operands<T, kD>(a, who);
      launch(stream, attention_forward_tile<T, kD, Walk<Shape::kPanel>>,
             query_tiles(operands.grid, operands.cut, a.groups.size()), Shape::kThreads,
             Shape::kSharedBytes, operands, arguments);
    });
  });
}

}  // namespace tessera::gpu
