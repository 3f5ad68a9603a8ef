#pragma once

#include "kernels/core/device_math.cuh"
#include "kernels/core/ptx.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/group_tiles.cuh"

/// A 128 x 128 tile of a product of bf16 on the tensor cores of sm_80: four warps with 64 x 64 each
/// (mma m16n8k16), depth in steps of 32 through a ring of four stages in shared memory that
/// cp.async fills. Stages are swizzled so that neither ldmatrix nor the copies have bank conflicts.
/// The fragments of the next 16 of the depth are read while those of this 16 are multiplied. Two
/// blocks fit on a multiprocessor of sm_80. Sums are f32, in the order of the depth.
namespace tessera::gpu {

inline constexpr int kTileSize = 128;
inline constexpr int kTileThreads = 128;
inline constexpr int kTileDepth = 32;
inline constexpr int kTileStages = 4;
inline constexpr int kTileElements = kTileSize * kTileDepth;  // of one operand in one stage
inline constexpr int64_t kTileSharedBytes = shared_bytes_of<BF16>(2 * kTileStages * kTileElements);

/// One operand: `lines` lines (rows of op(a), columns of op(b)) of `depth`, in memory by lines
/// (kInner) or by depth. Lines and depth along memory are multiples of 8, so that 16 bytes are
/// whole; the rest of a tile is zeros.
template <bool kInner>
struct TileOperand {
  static constexpr int kChunk = 8;  // elements of 16 bytes
  static constexpr int kChunks = (kInner ? kTileDepth : kTileSize) / kChunk;  // along memory

  const BF16* data;
  int64_t stride;
  int lines;
  int depth;

  /// Where a chunk lies: `outer` counts what is not along memory.
  __device__ static BF16* place(BF16* tile, int outer, int chunk) {
    // Eight neighbours in `outer` have their equal chunks in eight different groups of banks.
    const int turn = kInner ? (outer >> 1) & 3 : outer & 7;
    return tile + (outer * kChunks + (chunk ^ turn)) * kChunk;
  }

  /// Starts the copy of the tile that begins at `first` of the depth.
  __device__ void load(BF16* tile, int first) const {
    constexpr int kOuterAtOnce = kTileThreads / kChunks;
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
#pragma unroll
    for (int i = 0; i < kTileElements / kChunk / kTileThreads; ++i) {
      const int outer = static_cast<int>(threadIdx.x) / kChunks + i * kOuterAtOnce;
      const int line = kInner ? outer : chunk * kChunk;
      const int d = first + (kInner ? chunk * kChunk : outer);
      copy_async(place(tile, outer, chunk), data + (kInner ? line * stride + d : d * stride + line),
                 line < lines && d < depth);
    }
  }

  /// 16 lines from `line` and 16 of the depth, as four 8 x 8 matrices: the lane's eighth of the
  /// warp says by `line_half` and `depth_half` which quarter its row is of.
  __device__ static void read(uint32_t (&part)[4], BF16* tile, int line, int depth, int line_half,
                              int depth_half) {
    const int row = static_cast<int>(threadIdx.x) % 8;
    if constexpr (kInner) {
      load_matrices(part, place(tile, line + row + 8 * line_half, depth / kChunk + depth_half));
    } else {
      load_transposed(part, place(tile, depth + row + 8 * depth_half, line / kChunk + line_half));
    }
  }
};

/// What a warp multiplies at a time: 64 lines of a and of b, 16 of the depth.
struct TileFragments {
  uint32_t a[4][4];
  uint32_t b[4][4];
};

using TileSums = float[4][8][4];  // a warp's 64 x 64, as fragments of 16 x 8

__device__ __forceinline__ int tile_row_of_warp() {
  return static_cast<int>(threadIdx.x) / kWarpSize / 2 * 64;
}
__device__ __forceinline__ int tile_column_of_warp() {
  return static_cast<int>(threadIdx.x) / kWarpSize % 2 * 64;
}

template <class A, class B>
__device__ __forceinline__ void read_fragments(TileFragments& to, BF16* stage, int depth) {
  const int low = static_cast<int>(threadIdx.x) / 8 % 2;
  const int high = static_cast<int>(threadIdx.x) / 16 % 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    A::read(to.a[i], stage, tile_row_of_warp() + 16 * i, depth, low, high);
    B::read(to.b[i], stage + kTileElements, tile_column_of_warp() + 16 * i, depth, high, low);
  }
}

__device__ __forceinline__ void multiply_fragments(TileSums& sums, const TileFragments& f) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      multiply_bf16(sums[i][2 * j], f.a[i], f.b[j][0], f.b[j][1]);
      multiply_bf16(sums[i][2 * j + 1], f.a[i], f.b[j][2], f.b[j][3]);
    }
  }
}

/// sums = op(a) op(b). `stages` is the block's shared memory, free again after a barrier.
template <bool kAInner, bool kBInner>
__device__ __forceinline__ void multiply_tile(TileSums& sums, const TileProduct<BF16>& p,
                                              BF16* stages) {
  using A = TileOperand<kAInner>;
  using B = TileOperand<kBInner>;
  const A a{p.a, p.a_stride, p.m, p.depth};
  const B b{p.b, p.b_stride, p.n, p.depth};
  const int steps = (p.depth + kTileDepth - 1) / kTileDepth;
  const auto stage = [&](int step) { return stages + step % kTileStages * 2 * kTileElements; };
  const auto load = [&](int step) {
    if (step < steps) {
      a.load(stage(step), step * kTileDepth);
      b.load(stage(step) + kTileElements, step * kTileDepth);
    }
    close_copies();
  };
#pragma unroll
  for (int step = 0; step < kTileStages - 1; ++step) load(step);
  // Warps beyond the tile's edge, of a group with few rows, only copy.
  const bool active = tile_row_of_warp() < p.m && tile_column_of_warp() < p.n;
  TileFragments now;
  TileFragments next;
  wait_for_copies<kTileStages - 2>();
  __syncthreads();
  if (active && steps > 0) read_fragments<A, B>(now, stage(0), 0);
  for (int step = 0; step < steps; ++step) {
    if (active) read_fragments<A, B>(next, stage(step), 16);
    load(step + kTileStages - 1);  // into the stage whose last reads the last barrier followed
    if (active) multiply_fragments(sums, now);
    wait_for_copies<kTileStages - 2>();
    __syncthreads();
    if (active && step + 1 < steps) read_fragments<A, B>(now, stage(step + 1), 0);
    if (active) multiply_fragments(sums, next);
  }
}

/// c = sums, or c += sums. bf16 goes through shared memory, so that it is written 16 bytes at a
/// time.
__device__ inline void write_tile(const TileSums& sums, const TileProduct<BF16>& p, BF16* scratch) {
  constexpr int kPitch = kTileSize + TileOperand<true>::kChunk;  // rows in different banks
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (p.c_is_bf16) __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tile_row_of_warp() + 16 * i + 8 * half + lane / 4;
        const int column = tile_column_of_warp() + 8 * j + 2 * (lane % 4);
        float2 pair{sums[i][j][2 * half], sums[i][j][2 * half + 1]};
        if (p.c_is_bf16) {
          *reinterpret_cast<uint32_t*>(scratch + row * kPitch + column) = pack_bf16(pair.x, pair.y);
        } else if (row < p.m && column < p.n) {
          float2& c =
              *reinterpret_cast<float2*>(static_cast<float*>(p.c) + row * p.c_stride + column);
          if (p.add) pair = {c.x + pair.x, c.y + pair.y};
          c = pair;
        }
      }
    }
  }
  if (!p.c_is_bf16) return;
  __syncthreads();
  constexpr int kPacks = kTileSize / Pack<BF16>::kSize;
  for (int i = static_cast<int>(threadIdx.x); i < kTileSize * kPacks; i += kTileThreads) {
    const int row = i / kPacks;
    const int column = i % kPacks * Pack<BF16>::kSize;
    if (row >= p.m || column >= p.n) continue;
    store_pack(static_cast<BF16*>(p.c) + row * p.c_stride + column,
               load_pack(scratch + row * kPitch + column));
  }
}

}  // namespace tessera::gpu
