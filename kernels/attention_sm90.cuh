#pragma once

#include "kernels/attention_backward.cuh"
#include "kernels/core/ptx_sm90.cuh"
#include "kernels/core/tensor_map.cuh"
#include "kernels/core/wgmma_sm90.cuh"

/// What the backward kernels of attention for Hopper share. Warps of a block have one of two roles:
/// groups of four multiply, each with 64 rows of its product, and a last group copies: warp s of it
/// fills stage s of a ring of as many stages, so that looking for the next rows and copying them
/// take several steps' time. A stage is `full` when its bytes are there and `empty` when every
/// multiplying warp has arrived: each waits for full first, whether it has use for the stage or
/// not.
namespace tessera::gpu {

/// 64 rows of kD numbers of bf16, as copies leave them: a half of 64 columns after the other, each
/// 64 lines of 128 bytes in the swizzle of 128 bytes. Aligned to 1024.
template <int kD>
struct SwizzledRows {
  static constexpr int kRows = 64;
  static constexpr int kHalves = kD / 64;
  static constexpr int kHalf = kRows * 128;  // bytes
  static constexpr int kBytes = kHalves * kHalf;
  unsigned char* data;

  /// Starts the copy of the box at row (y, z) of the tensor, by one lane: kBytes.
  __device__ void copy(const CUtensorMap& map, uint64_t* barrier, int y, int z) const {
    for (int h = 0; h < kHalves; ++h) copy_box(data + h * kHalf, &map, barrier, 64 * h, y, z);
  }
  /// Factors of a product over the columns, and what to add for columns 16 k on.
  __device__ uint64_t along_depth() const { return matrix_descriptor(data, 16); }
  static constexpr uint64_t columns_on(int k) { return k / 4 * (kHalf / 16) + k % 4 * 2; }
  /// Right factor of a product over the rows, and what to add for rows 16 k on.
  __device__ uint64_t along_columns() const { return matrix_descriptor(data, kHalf); }
  static constexpr uint64_t rows_on(int k) { return k * 128; }

  /// Where 8 numbers lie: columns 8 `pack` on.
  __device__ unsigned char* place(int row, int pack) const {
    return data + pack / 8 * kHalf + row * 128 + ((pack ^ row) & 7) * 16;
  }
  /// Zeros in rows from `first` on, by `threads` lanes of which this is one. Theirs is a barrier
  /// before products.
  __device__ void clear_from(int first, int lane, int threads) const {
    constexpr int kPacks = kD / 8;
    for (int i = first * kPacks + lane; i < kRows * kPacks; i += threads) {
      *reinterpret_cast<uint4*>(place(i / kPacks, i % kPacks)) = make_uint4(0, 0, 0, 0);
    }
  }
  /// Puts a warp's sums, times `factor`, into 16 rows from `row` on: fragments as wgmma leaves
  /// them.
  __device__ void put(int row, const float (&c)[kD / 2], float factor) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
        const float* const pair = c + 4 * n + 2 * half;
        *reinterpret_cast<uint32_t*>(place(row + row_of_lane(half), n) + lane % 4 * 4) =
            pack_bf16(pair[0] * factor, pair[1] * factor);
      }
    }
  }
  /// Writes `count` rows from `row` on, by a warp, to where `to(i)` says.
  template <class To>
  __device__ void write(int row, int count, const To& to) const {
    constexpr int kPacks = kD / 8;
    for (int i = static_cast<int>(threadIdx.x) % kWarpSize; i < count * kPacks; i += kWarpSize) {
      store_pack(to(i / kPacks) + i % kPacks * 8,
                 load_pack(reinterpret_cast<const BF16*>(place(row + i / kPacks, i % kPacks))));
    }
  }
};

/// Barriers and stages of a block, in shared memory. The first of the stages is aligned to 1024.
template <int kStages>
struct StageRing {
  uint64_t* full;
  uint64_t* empty;
  uint64_t* kept;  ///< of what stays for the whole of the block's time
  unsigned char* memory;

  static constexpr int kAligned = 1024;
  static constexpr int64_t bytes(int64_t memory) {
    return shared_bytes_of<uint64_t>(2 * kStages + 1) + kAligned + memory;
  }
  /// By all lanes of the block; behind it is a barrier of the block.
  __device__ static StageRing start(SharedMemory& shared, int bytes, uint32_t multiplying_warps) {
    uint64_t* const barriers = shared.take<uint64_t>(2 * kStages + 1);
    unsigned char* const rest = shared.take<unsigned char>(kAligned + bytes);
    const uint32_t beyond = address_in_shared(rest) % kAligned;
    const StageRing ring{barriers, barriers + kStages, barriers + 2 * kStages,
                         rest + (kAligned - beyond) % kAligned};
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        start_barrier(ring.full + i, 1);
        start_barrier(ring.empty + i, multiplying_warps);
      }
      start_barrier(ring.kept, 1);
      show_barriers();
    }
    __syncthreads();
    return ring;
  }
  /// Of the `turn`-th use of a stage.
  __device__ void wait_until_full(int stage, int turn) const {
    wait_for_phase(full + stage, static_cast<uint32_t>(turn) & 1);
  }
  /// Who waits here after the last use too finds out where the others hang, and stops the kernel.
  __device__ void wait_until_empty(int stage, int turn) const {
    wait_for_phase_or_stop(empty + stage, (static_cast<uint32_t>(turn) & 1) ^ 1);
  }
  /// By a whole warp.
  __device__ void give_back(int stage) const {
    __syncwarp();
    if (threadIdx.x % kWarpSize == 0) arrive(empty + stage);
  }
};

/// 16 columns from 16 k on of a warp group's results, rounded, as the left factor of a product.
template <int kCount>
__device__ __forceinline__ void left_factor(uint32_t (&a)[4], const float (&c)[kCount], int k) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = pack_bf16(c[8 * k + 2 * i], c[8 * k + 2 * i + 1]);
}

/// c = a b^T of 64 rows each, over kD columns: starts the products and closes their group.
template <int kD>
__device__ __forceinline__ void start_scores(float (&c)[32], uint64_t a, uint64_t b) {
  open_products();
#pragma unroll
  for (int k = 0; k < kD / 16; ++k) {
    constexpr auto kOn = SwizzledRows<kD>::columns_on;
    multiply_64<64, false, false>(c, a + kOn(k), b + kOn(k), k > 0);
  }
  close_products();
}
/// c += a b, b of 64 rows and kD columns: starts the products.
template <int kD>
__device__ __forceinline__ void start_sums(float (&c)[kD / 2], const uint32_t (&a)[4][4],
                                           uint64_t b) {
#pragma unroll
  for (int k = 0; k < 4; ++k)
    multiply_64<kD, true>(c, a[k], b + SwizzledRows<kD>::rows_on(k), true);
}

/// Tensors of backward, in boxes: of q and d_o all heads of a group for some tokens, of k and v 64
/// keys of one KV head.
struct BackwardMaps {
  CUtensorMap q;
  CUtensorMap d_o;
  CUtensorMap k;
  CUtensorMap v;
};
template <class A>
BackwardMaps backward_maps(const A& a, int64_t tokens_of_box, const char* who) {
  const int64_t heads = head_map(a).group_heads;
  const auto map = [&](const ConstTensorView& x, int64_t y, int64_t z) {
    const Shape& shape = x.shape();
    return tensor_map(x, {shape[2], shape[1], shape[0]}, {64, y, z}, who);
  };
  return {map(a.q, heads, tokens_of_box), map(a.d_o, heads, tokens_of_box), map(a.k, 1, 64),
          map(a.v, 1, 64)};
}

/// Whether the kernels for Hopper take a call of backward, by shapes alone: bf16, heads of 64 or
/// 128 numbers, and whole groups of 1, 2, 4 or 8 of them, at least `least_heads`.
template <class A>
bool backward_fits_sm90(const A& a, int64_t least_heads) {
  const HeadMap map = head_map(a);
  const int64_t d = a.q.shape()[2];
  if (a.q.dtype() != DType::kBF16 || (d != 64 && d != 128)) return false;
  if (a.q.shape()[0] == 0 || a.k.shape()[0] == 0) return false;
  if (map.group_heads > 8 || 8 % map.group_heads != 0 || map.group_heads < least_heads)
    return false;
  for (const int32_t group : a.groups) {
    if (map.count_of(group) != map.group_heads) return false;
  }
  return true;
}

}  // namespace tessera::gpu
