#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/core/device_math.cuh"
#include "kernels/core/dtype.h"
#include "kernels/core/ptx.cuh"
#include "kernels/core/shared_memory.cuh"

/// What the attention kernels, forward and backward, are made of: tiles of rows in shared memory,
/// products of a warp with them, and which keys a query sees. One source for bf16 (m16n8k16) and
/// f32 (m16n8k8, three products of tf32 parts for 21 bits).
///
/// A warp has 16 rows of a product. Its results lie in lanes as mma.sync leaves them: with
/// g = lane / 4 and t = lane % 4, c[n][0], c[n][1] are columns 8 n + 2 t and 8 n + 2 t + 1 of row
/// g, c[n][2] and c[n][3] those of row g + 8. A *strip* is 16 columns: c[2 s] and c[2 s + 1].
namespace tessera::gpu {

inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2 = 0.693147181f;

/// Numbers of the inner dimension that one product takes: 32 bytes of a row.
template <class T>
inline constexpr int kDepth = 32 / static_cast<int>(sizeof(T));

/// Rows of kD numbers in shared memory. A row is 16 bytes longer than its numbers, so that eight
/// rows that are read at once lie in different banks.
template <class T, int kD>
struct TileRows {
  static constexpr int kStride = kD + 16 / static_cast<int>(sizeof(T));
  T* data;

  __device__ T* row(int i) const { return data + i * kStride; }
  static constexpr int elements(int rows) { return rows * kStride; }
  __device__ static TileRows take(SharedMemory& shared, int rows) {
    return {shared.take<T>(elements(rows))};
  }
};

/// Starts copies of `rows` rows from global memory by all kThreads lanes of a block: row i from
/// source(i), `d` numbers, zeros behind them, and all zeros where source(i) is null. Rows of the
/// source are aligned to 16 bytes, d is a multiple of 8; `somewhere` is any address in its tensor,
/// named by the copies that read nothing. The caller closes the group of copies.
template <int kThreads, class T, int kD, class Source>
__device__ __forceinline__ void copy_rows(const TileRows<T, kD>& to, int rows, int d,
                                          const T* somewhere, const Source& source) {
  constexpr int kPacks = kD / Pack<T>::kSize;
  for (int i = static_cast<int>(threadIdx.x); i < rows * kPacks; i += kThreads) {
    const int row = i / kPacks;
    const int column = i % kPacks * Pack<T>::kSize;
    const T* const from = source(row);
    const bool valid = from != nullptr && column < d;
    copy_async(to.row(row) + column, valid ? from + column : somewhere, valid);
  }
}

/// The left factor of a product, 16 rows from `first` on, kept in registers.
template <class T, int kD>
struct KeptRows {
  uint32_t part[kD / kDepth<T>][4];

  __device__ void load(const TileRows<T, kD>& rows, int first);
  __device__ void get(uint32_t (&a)[4], int k) const {
    for (int i = 0; i < 4; ++i) a[i] = part[k][i];
  }
};
/// The same, read from shared memory whenever it is needed.
template <class T, int kD>
struct ReadRows {
  const T* address;  ///< what this lane reads, of the first product

  __device__ void load(const TileRows<T, kD>& rows, int first) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    address = rows.row(first + lane % 16) + lane / 16 * (kDepth<T> / 2);
  }
  __device__ void get(uint32_t (&a)[4], int k) const { load_matrices(a, address + k * kDepth<T>); }
};
template <class T, int kD>
__device__ void KeptRows<T, kD>::load(const TileRows<T, kD>& rows, int first) {
  ReadRows<T, kD> reader;
  reader.load(rows, first);
#pragma unroll
  for (int k = 0; k < kD / kDepth<T>; ++k) reader.get(part[k], k);
}

/// c += a b for factors as they lie in memory. An f32 is the sum of two tf32 and a rest of 2^-22.
template <class T>
__device__ __forceinline__ void multiply_parts(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1) {
  if constexpr (sizeof(T) == 2) {
    multiply_bf16(c, a, b0, b1);
  } else {
    const auto rest = [](uint32_t x, uint32_t high) {
      return to_tf32(__uint_as_float(x) - __uint_as_float(high));
    };
    uint32_t high[4];
    uint32_t low[4];
    for (int i = 0; i < 4; ++i) {
      high[i] = to_tf32(__uint_as_float(a[i]));
      low[i] = rest(a[i], high[i]);
    }
    const uint32_t high0 = to_tf32(__uint_as_float(b0));
    const uint32_t high1 = to_tf32(__uint_as_float(b1));
    // Tensor cores cut off what does not fit into a sum, so a long one would drift towards 0: each
    // product has a sum of its own, and these are added with rounding.
    float own[4] = {};
    multiply_tf32(own, low, high0, high1);
    multiply_tf32(own, high, rest(b0, high0), rest(b1, high1));
    multiply_tf32(own, high, high0, high1);
    for (int i = 0; i < 4; ++i) c[i] += own[i];
  }
}

/// body(0), body(kEach), ... below kEnd, each a product or more: laid out one after the other in
/// bf16. In f32 a product is some 30 instructions, and a kernel of whole loops 10,000: too many for
/// the caches of instructions, and for the compiler's time.
template <class T, int kEnd, int kEach = 1, class Body>
__device__ __forceinline__ void for_products(Body body) {
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < kEnd; i += kEach) body(i);
  } else {
#pragma unroll 1
    for (int i = 0; i < kEnd; i += kEach) body(i);
  }
}

/// c[0], c[1] += left b^T for the 16 rows of b from `first` on: one strip of scores.
template <class T, int kD, class Left>
__device__ __forceinline__ void add_strip(float (&c0)[4], float (&c1)[4], const Left& left,
                                          const TileRows<T, kD>& b, int first) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  // Matrices: rows 0-7 of the first 16 bytes, of the second; rows 8-15 likewise.
  const T* const row = b.row(first + lane % 8 + lane / 16 * 8) + lane / 8 % 2 * (kDepth<T> / 2);
  for_products<T, kD / kDepth<T>>([&](int k) {
    uint32_t a[4];
    uint32_t parts[4];
    left.get(a, k);
    load_matrices(parts, row + k * kDepth<T>);
    multiply_parts<T>(c0, a, parts[0], parts[1]);
    multiply_parts<T>(c1, a, parts[2], parts[3]);
  });
}
/// c += left b^T for kStrips strips at once: more products under way than strip by strip.
template <int kStrips, class T, int kD, class Left>
__device__ __forceinline__ void add_strips(float (&c)[2 * kStrips][4], const Left& left,
                                           const TileRows<T, kD>& b) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const T* const row = b.row(lane % 8 + lane / 16 * 8) + lane / 8 % 2 * (kDepth<T> / 2);
  for_products<T, kD / kDepth<T>>([&](int k) {
    uint32_t a[4];
    left.get(a, k);
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      uint32_t parts[4];
      load_matrices(parts, row + 16 * s * TileRows<T, kD>::kStride + k * kDepth<T>);
      multiply_parts<T>(c[2 * s], a, parts[0], parts[1]);
      multiply_parts<T>(c[2 * s + 1], a, parts[2], parts[3]);
    }
  });
}

/// c[n] += w b: w is a strip [16, 16] of weights as a product left it, rounded to T, and b the 16
/// rows from `first` on. With c of [16, kD] this is weights times values, or dS times keys; c may
/// have fewer columns than b.
template <int kTiles, class T, int kD>
__device__ __forceinline__ void add_weighted(float (&c)[kTiles][4], const float (&w0)[4],
                                             const float (&w1)[4], const TileRows<T, kD>& b,
                                             int first) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if constexpr (sizeof(T) == 2) {
    const uint32_t a[4] = {pack_bf16(w0[0], w0[1]), pack_bf16(w0[2], w0[3]),
                           pack_bf16(w1[0], w1[1]), pack_bf16(w1[2], w1[3])};
    // Matrices: rows 0-7 and 8-15 of columns 0-7; the same of columns 8-15.
    const T* const row = b.row(first + lane % 16) + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t parts[4];
      load_transposed(parts, row + 8 * n);
      multiply_bf16(c[n], a, parts[0], parts[1]);
      multiply_bf16(c[n + 1], a, parts[2], parts[3]);
    }
  } else {
    // The lane has weights 2 t and 2 t + 1 of a row where the product wants t and t + 4: any order
    // of the inner dimension will do that is the same in b.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float(&w)[4] = half == 0 ? w0 : w1;
      const uint32_t a[4] = {__float_as_uint(w[0]), __float_as_uint(w[2]), __float_as_uint(w[1]),
                             __float_as_uint(w[3])};
      const T* const row = b.row(first + 8 * half + 2 * (lane % 4)) + lane / 4;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        multiply_parts<T>(c[n], a, __float_as_uint(row[8 * n]),
                          __float_as_uint(row[8 * n + TileRows<T, kD>::kStride]));
      }
    }
  }
}

/// Sum and maximum over the four lanes that share a row.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(kWholeWarp, x, 1);
  return x + __shfl_xor_sync(kWholeWarp, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 2));
}
/// Of the two rows of this lane, counted from the warp's first: `half` 0 or 1.
__device__ __forceinline__ int row_of_lane(int half) {
  return static_cast<int>(threadIdx.x) % kWarpSize / 4 + 8 * half;
}
/// Column of c[n][i] in this lane.
__device__ __forceinline__ int column_of_lane(int n, int i) {
  return 8 * n + 2 * (static_cast<int>(threadIdx.x) % 4) + i % 2;
}

/// Windows and sink tokens are at most this: no position is as far as that.
inline constexpr int kMostReach = 1 << 30;

/// Keys of a panel that a row sees: i is seen iff i <= high and (i >= low or i < sinks).
struct SeenKeys {
  int low;
  int high;  ///< -1: none
  int sinks;

  __device__ bool sees(int i) const { return i <= high && (i >= low || i < sinks); }
  /// By the rule of kernels/attention.h; `first` is the position of the panel's first key.
  __device__ static SeenKeys of(int position, int first, int count, int window, int sink_tokens) {
    const int high = std::min(position - first, count - 1);
    return {position - first - window + 1, high, sink_tokens - first};
  }
};

/// Strips of a panel that a warp computes: [first, end). All rows see all keys of a panel that is
/// `whole`, and nothing needs to be hidden.
struct Strips {
  int first;
  int end;
  bool whole;

  __device__ bool none() const { return first >= end; }
};
/// Of `keys` keys and rows at positions from `lowest` to `highest`, relative to the panel's first
/// key, which see by window and sinks. `full`: keys of a panel.
__device__ __forceinline__ Strips seen_strips(int lowest, int highest, int keys, int window,
                                              int sinks, int full) {
  const int last = std::min(keys - 1, highest);
  const int window_begins = std::max(0, lowest - window + 1);  // of the row that sees furthest back
  const bool from_start = sinks > 0;
  if (last < 0 || (!from_start && window_begins > last)) return {0, 0, false};
  const bool all =
      keys == full && lowest >= keys - 1 && (highest - window + 1 <= 0 || sinks >= keys);
  return {from_start ? 0 : window_begins / 16, last / 16 + 1, all};
}

/// Calls f.template operator()<kD>() with the least head dimension that kernels are made for and
/// that has room for `d` numbers: the rest are zeros.
template <class F>
void with_head_dim(int64_t d, F&& f) {
  if (d <= 32) return f.template operator()<32>();
  if (d <= 64) return f.template operator()<64>();
  if (d <= 128) return f.template operator()<128>();
  f.template operator()<256>();
}

}  // namespace tessera::gpu
