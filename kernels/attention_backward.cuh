#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "kernels/attention_tile.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/query_tile.cuh"

/// What the kernels of attention's backward share, dense and sparse. There are two, without atomics
/// and so with 7 products where one kernel would need 5: attention_query_gradient.cuh for dq and
/// the gates, attention_key_gradient.cuh for dk and dv. Both compute
///   p_ij = exp(s_ij - L_i),   ds_ij = p_ij (d_o_i . v_j - delta_i)
/// once more; p is rounded to the dtype only as a factor of a product, and so is ds.
namespace tessera::gpu {

template <class T>
struct BackwardOperands {
  T* dq;               // [tokens, heads, d]
  T* dk;               // [keys, kv_heads, d]
  T* dv;               // [keys, kv_heads, d]
  const T* d_o;        // [tokens, heads, d]
  const T* q;          // [tokens, heads, d]
  const T* k;          // [keys, kv_heads, d]
  const T* v;          // [keys, kv_heads, d]
  const float* lse;    // [heads, tokens]
  const float* delta;  // [heads, tokens]
  GridView grid;
  GroupList groups;
  HeadMap map;
  int64_t tokens;
  int kv_heads;
  int d;
  float scale;

  /// Offset of a row of q, d_o and dq.
  __device__ int64_t query(int64_t token, int64_t head) const {
    return (token * map.heads + head) * d;
  }
  /// Offset of a row of k, v, dk and dv.
  __device__ int64_t key(int64_t row, int64_t kv_head) const {
    return (row * kv_heads + kv_head) * d;
  }
};

/// Of the arguments of a backward kernel.
template <class T, class A>
BackwardOperands<T> backward_operands(const A& a, const char* who) {
  const int64_t d = a.q.shape()[2];
  const auto data = [&](const auto& x) {
    const auto numbers = x.template as<T>().data();
    CHECK(in_packs(numbers, d), who, ": a tensor's address is not a multiple of 16");
    return numbers;
  };
  return {.dq = data(a.dq),
          .dk = data(a.dk),
          .dv = data(a.dv),
          .d_o = data(a.d_o),
          .q = data(a.q),
          .k = data(a.k),
          .v = data(a.v),
          .lse = a.lse.template as<float>().data(),
          .delta = a.delta.template as<float>().data(),
          .grid = view_of(a.grid),
          .groups = group_list(a.groups, who),
          .map = head_map(a),
          .tokens = a.q.shape()[0],
          .kv_heads = static_cast<int>(a.k.shape()[1]),
          .d = static_cast<int>(d),
          .scale = a.scale};
}

/// delta[h, i] = d_o_i . o_i for the heads of `groups`, and where sink logits are given
///   dsink_logits[h] += - sum_i exp(a_h - L_i) delta_i.
struct AttentionDelta {
  TensorView delta;
  TensorView dsink_logits;
  ConstTensorView d_o;
  ConstTensorView o;
  ConstTensorView lse;
  ConstTensorView sink_logits;
  std::span<const int32_t> groups;
  HeadMap map;
};
void attention_delta(Stream& stream, const AttentionDelta& a);
template <class A>
AttentionDelta delta_of(const A& a) {
  return {.delta = a.delta,
          .dsink_logits = a.dsink_logits,
          .d_o = a.d_o,
          .o = a.o,
          .lse = a.lse,
          .sink_logits = a.sink_logits,
          .groups = a.groups,
          .map = head_map(a)};
}

template <class T>
__device__ __forceinline__ void swap_places(T& a, T& b) {
  const T was = a;
  a = b;
  b = was;
}

/// Sets a warp's results to 0.
template <int kTiles>
__device__ __forceinline__ void clear(float (&c)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] = 0;
  }
}

/// Puts a warp's results, times `factor`, into 16 rows of shared memory that are this warp's alone,
/// from the first column on.
template <class T, int kD, int kTiles>
__device__ __forceinline__ void put_rows(const TileRows<T, kD>& place, const float (&c)[kTiles][4],
                                         float factor) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    T* const row = place.row(row_of_lane(half)) + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float x = c[n][2 * half] * factor;
      const float y = c[n][2 * half + 1] * factor;
      if constexpr (sizeof(T) == 2) {
        *reinterpret_cast<uint32_t*>(row + 8 * n) = pack_bf16(x, y);
      } else {
        *reinterpret_cast<float2*>(row + 8 * n) = make_float2(x, y);
      }
    }
  }
}
/// Writes the first `count` of these rows, `columns` numbers each, to where `to(i)` says.
template <class T, int kD, class To>
__device__ __forceinline__ void write_rows(const TileRows<T, kD>& place, int count, int columns,
                                           const To& to) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int packs = columns / Pack<T>::kSize;
  for (int i = lane; i < count * packs; i += kWarpSize) {
    const int column = i % packs * Pack<T>::kSize;
    store_pack(to(i / packs) + column, load_pack(place.row(i / packs) + column));
  }
}

}  // namespace tessera::gpu
