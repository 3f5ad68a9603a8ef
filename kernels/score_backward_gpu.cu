#include <algorithm>
#include <cmath>

#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/gate_backward.h"
#include "kernels/segment_grid.cuh"

// Two passes over the choices, 2 (k + 1) gate_dim products per token each. dqt: a warp per token
// gathers the keys it chose, which lie in the L2 cache. dkt: a block owns 64 gate keys, whose sums
// are in registers, 8 per warp, and goes through a chunk of the tokens, 32 at a time: their queries
// and the factors of those that chose one of the keys are put into shared memory, with a mask of
// tokens per key, and every warp adds what its keys' masks name, in token order. The chunks, a
// function of the shapes alone, are summed in their order by a third kernel. Everything but the
// sums of the chunks (at most 32 MiB) is read from the L2 cache.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

struct Scores {
  const float* dscores;   // [groups, tokens, kept + 1]
  const int32_t* blocks;  // [groups, tokens, kept + 1]
  const float* scores;    // [groups, tokens, kept + 1]
  const int32_t* counts;  // [groups, tokens]
  const float* qt;        // [groups, tokens, gate_dim]
  const float* kt;        // [groups, keys, gate_dim]
  GridView grid;
  int64_t keys;  // max_blocks * gate_keys
  int tokens;
  int kept;
  int gate_dim;
  int gate_keys;
  float scale;  // 1 / sqrt(gate_dim)
};

/// The gradient of the product of a query with one of several keys of a block, from that of the
/// block's score. All lanes of the warp call it.
__device__ float spread(const Scores& a, float dscore, float score, const float* qt,
                        const float* kt, int lane) {
  float product = 0;
  for (int d = lane; d < a.gate_dim; d += kWarpSize) product += qt[d] * kt[d];
  return dscore * expf(warp_sum(product) * a.scale - score);
}

/// One token's query: columns [first, first + 128) of dqt.
__device__ void gather_keys(const Scores& a, int64_t row, const float* kt, int first, int lane,
                            float* dqt) {
  constexpr int kParts = 4;
  const int64_t slots = row * (a.kept + 1);
  const int count = std::min(a.counts[row], a.kept);
  const bool dropped = a.blocks[slots + a.kept] >= 0;
  float sums[kParts] = {};
  // The runner-up comes last.
  for (int from = 0; from < count + (dropped ? 1 : 0); from += kWarpSize) {
    const int own = from + lane < count ? from + lane : a.kept;
    const int block = a.blocks[slots + own];
    const float dscore = a.dscores[slots + own] * a.scale;
    const float score = a.scores[slots + own];
    const int here = std::min(int{kWarpSize}, count + (dropped ? 1 : 0) - from);
    if (a.gate_keys == 1) {
#pragma unroll 4
      for (int s = 0; s < here; ++s) {
        const float factor = __shfl_sync(kWholeWarp, dscore, s);
        const float* const x = kt + int64_t{__shfl_sync(kWholeWarp, block, s)} * a.gate_dim;
        for (int i = 0; i < kParts; ++i) {
          const int d = first + i * kWarpSize + lane;
          if (d < a.gate_dim) sums[i] += factor * x[d];
        }
      }
      continue;
    }
    for (int s = 0; s < here; ++s) {
      const float of_slot = __shfl_sync(kWholeWarp, dscore, s);
      const float z = __shfl_sync(kWholeWarp, score, s);
      const int64_t key = int64_t{__shfl_sync(kWholeWarp, block, s)} * a.gate_keys;
      if (of_slot == 0) continue;
      for (int part = 0; part < a.gate_keys; ++part) {
        const float* const x = kt + (key + part) * a.gate_dim;
        const float factor = spread(a, of_slot, z, a.qt + row * a.gate_dim, x, lane);
        for (int i = 0; i < kParts; ++i) {
          const int d = first + i * kWarpSize + lane;
          if (d < a.gate_dim) sums[i] += factor * x[d];
        }
      }
    }
  }
  for (int i = 0; i < kParts; ++i) {
    const int d = first + i * kWarpSize + lane;
    if (d < a.gate_dim) dqt[row * a.gate_dim + d] = sums[i];
  }
}

__global__ void __launch_bounds__(kThreads, 3) backward_queries(Scores a, float* dqt) {
  constexpr int kColumns = 128;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int token = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (token >= a.tokens) return;
  const int group = static_cast<int>(blockIdx.y);
  const Stretches& pieces = a.grid.pieces;
  const int segment = pieces.segment(range_of(pieces.starts, pieces.size, token));
  const float* const kt =
      a.kt + (group * a.keys + int64_t{a.grid.block_starts[segment]} * a.gate_keys) * a.gate_dim;
  for (int first = 0; first < a.gate_dim; first += kColumns) {
    gather_keys(a, int64_t{group} * a.tokens + token, kt, first, lane, dqt);
  }
}

constexpr int kTile = 32;     // tokens
constexpr int kKeys = 64;     // of a block of threads
constexpr int kColumns = 64;  // of the keys, two per lane
constexpr int kKeysPerWarp = kKeys / kWarps;

/// Which keys of dkt a block of threads has, and which columns of them.
struct KeyRange {
  int64_t begin;
  int64_t end;
  int first_column;
};

/// A tile of tokens in shared memory.
struct KeyTile {
  static constexpr int kStride = kTile + 1;  // choices of one token go to different banks
  float* queries;                            // [kTile, kColumns]
  float* factors;                            // [kKeys, kStride]: dkt gets factor * query
  unsigned* masks;                           // [kKeys]: which tokens have a factor

  __device__ static KeyTile take(SharedMemory& shared) {
    return {shared.take<float>(kTile * kColumns), shared.take<float>(kKeys * kStride),
            shared.take<unsigned>(kKeys)};
  }
  static constexpr int64_t kBytes = shared_bytes_of<float>(kTile * kColumns) +
                                    shared_bytes_of<float>(kKeys * kStride) +
                                    shared_bytes_of<unsigned>(kKeys);
  __device__ void put(int key, int token, float factor) const {
    factors[key * kStride + token] = factor;
    atomicOr(masks + key, 1u << token);
  }
};

/// What a lane knows of its token of a tile.
struct TokenChoices {
  int first_block;  // of its segment
  int count;        // slots
  bool reaches;     // whether it can have chosen a key of the range
};
__device__ TokenChoices choices_of(const Scores& a, int64_t group, int token, int end,
                                   const KeyRange& keys) {
  if (token >= end) return {0, 0, false};
  const Stretches& pieces = a.grid.pieces;
  const int piece = range_of(pieces.starts, pieces.size, token);
  const int first_block = a.grid.block_starts[pieces.segment(piece)];
  // Tokens choose only blocks before their own.
  const int own = first_block + (token - pieces.origin(piece)) / a.grid.block;
  const bool reaches =
      int64_t{own} * a.gate_keys > keys.begin && int64_t{first_block} * a.gate_keys < keys.end;
  return {first_block, reaches ? std::min(a.counts[group * a.tokens + token], a.kept) : 0, reaches};
}

/// The factors of one token for several gate keys per block. All lanes of the warp call it; each
/// has a slot, or none: block < 0.
__device__ void put_spread(const Scores& a, int64_t group, int64_t row, const KeyRange& keys,
                           const KeyTile& tile, int token, int block, int64_t slot) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t first_key = int64_t{block} * a.gate_keys;
  const bool inside = block >= 0 && first_key < keys.end && first_key + a.gate_keys > keys.begin;
  const float dscore = inside ? a.dscores[slot] * a.scale : 0.0f;
  const float score = inside ? a.scores[slot] : 0.0f;
  for (unsigned left = __ballot_sync(kWholeWarp, dscore != 0); left != 0; left &= left - 1) {
    const int s = __ffs(static_cast<int>(left)) - 1;
    const int64_t first = int64_t{__shfl_sync(kWholeWarp, block, s)} * a.gate_keys;
    const float of_slot = __shfl_sync(kWholeWarp, dscore, s);
    const float z = __shfl_sync(kWholeWarp, score, s);
    const int64_t end = std::min(keys.end, first + a.gate_keys);
    for (int64_t key = std::max(keys.begin, first); key < end; ++key) {
      const float factor = spread(a, of_slot, z, a.qt + row * a.gate_dim,
                                  a.kt + (group * a.keys + key) * a.gate_dim, lane);
      if (lane == 0) tile.put(static_cast<int>(key - keys.begin), token, factor);
    }
  }
}

/// Puts one token that reaches the range into its place of a tile, by a warp.
__device__ void put_token(const Scores& a, int64_t group, int64_t row, int first_block, int count,
                          const KeyRange& keys, const KeyTile& tile, int token) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int c = lane; c < kColumns; c += kWarpSize) {
    const int d = keys.first_column + c;
    tile.queries[token * kColumns + c] = d < a.gate_dim ? a.qt[row * a.gate_dim + d] : 0.0f;
  }
  for (int from = 0; from <= a.kept; from += kWarpSize) {
    const int i = from + lane;
    const int64_t slot = row * (a.kept + 1) + i;
    // The runner-up comes last, and is -1 if there is none.
    int block = i < count || i == a.kept ? a.blocks[slot] : -1;
    if (block >= 0) block += first_block;
    if (a.gate_keys > 1) {
      put_spread(a, group, row, keys, tile, token, block, slot);
    } else if (block >= keys.begin && block < keys.end) {
      const float factor = a.dscores[slot] * a.scale;
      if (factor != 0) tile.put(static_cast<int>(block - keys.begin), token, factor);
    }
  }
}

/// Adds a tile to the sums of the warp's keys, and leaves their masks empty.
__device__ void add_tile(float2 (&sums)[kKeysPerWarp], const KeyTile& tile) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int first_key = static_cast<int>(threadIdx.x) / kWarpSize * kKeysPerWarp;
#pragma unroll
  for (int j = 0; j < kKeysPerWarp; ++j) {
    const int key = first_key + j;
    for (unsigned left = tile.masks[key]; left != 0; left &= left - 1) {
      const int token = __ffs(static_cast<int>(left)) - 1;
      const float factor = tile.factors[key * KeyTile::kStride + token];
      const float2 q = *reinterpret_cast<const float2*>(tile.queries + token * kColumns + 2 * lane);
      sums[j].x += factor * q.x;
      sums[j].y += factor * q.y;
    }
  }
  __syncwarp();
  if (lane < kKeysPerWarp) tile.masks[first_key + lane] = 0;
}

/// Block (range of keys and of columns, chunk of tokens, group); `out` [chunks, groups, keys,
/// gate_dim].
__global__ void __launch_bounds__(kThreads, 3)
    backward_keys(Scores a, float* out, int column_parts, int chunk_tokens) {
  SharedMemory shared;
  const KeyTile tile = KeyTile::take(shared);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t begin = int64_t{blockIdx.x} / column_parts * kKeys;
  const KeyRange keys{begin, std::min(a.keys, begin + kKeys),
                      static_cast<int>(blockIdx.x) % column_parts * kColumns};
  const int64_t group = blockIdx.z;
  const int chunk_begin = std::min(a.tokens, static_cast<int>(blockIdx.y) * chunk_tokens);
  const int chunk_end = std::min(a.tokens, chunk_begin + chunk_tokens);
  float2 sums[kKeysPerWarp] = {};
  if (threadIdx.x < kKeys) tile.masks[threadIdx.x] = 0;
  __syncthreads();
  for (int first = chunk_begin; first < chunk_end; first += kTile) {
    // Every warp looks at all tokens of the tile, so that all agree on whether there is work.
    const TokenChoices own = choices_of(a, group, first + lane, chunk_end, keys);
    const unsigned reaching = __ballot_sync(kWholeWarp, own.reaches);
    if (reaching == 0) continue;
    for (int token = warp; token < kTile; token += kWarps) {
      const int first_block = __shfl_sync(kWholeWarp, own.first_block, token);
      const int count = __shfl_sync(kWholeWarp, own.count, token);
      if ((reaching >> token & 1) == 0) continue;
      put_token(a, group, group * a.tokens + first + token, first_block, count, keys, tile, token);
    }
    __syncthreads();
    add_tile(sums, tile);
    __syncthreads();
  }
  float* const to = out + (blockIdx.y * gridDim.z + group) * a.keys * a.gate_dim;
  const int column = keys.first_column + 2 * lane;
#pragma unroll
  for (int j = 0; j < kKeysPerWarp; ++j) {
    const int64_t key = begin + warp * kKeysPerWarp + j;
    if (key >= keys.end) continue;
    if (column < a.gate_dim) to[key * a.gate_dim + column] = sums[j].x;
    if (column + 1 < a.gate_dim) to[key * a.gate_dim + column + 1] = sums[j].y;
  }
}

__global__ void __launch_bounds__(kThreads)
    add_chunks(float* dkt, const float* partials, int64_t count, int chunks) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
#pragma unroll 8
  for (int chunk = 0; chunk < chunks; ++chunk) sum += partials[chunk * count + i];
  dkt[i] = sum;
}

void launch_keys(Stream& stream, const ScoreBackward& a, const Scores& scores) {
  constexpr int64_t kLeastTokens = 2 * kTile;  // of a chunk
  constexpr int64_t kPartialBytes = Stream::kWorkspaceBytes / 2;
  const int64_t count = a.dkt.elements();
  if (count == 0) return;
  const int64_t most = std::max<int64_t>(1, kPartialBytes / (count * int64_t{sizeof(float)}));
  const int64_t wanted = std::clamp<int64_t>(blocks_for(scores.tokens, kLeastTokens), 1, most);
  const int64_t chunk_tokens =
      blocks_for(blocks_for(scores.tokens, wanted), kTile) * int64_t{kTile};
  const int64_t chunks =
      std::max(1u, blocks_for(scores.tokens, std::max<int64_t>(1, chunk_tokens)));
  float* const partials = chunks == 1
                              ? a.dkt.as<float>().data()
                              : Workspace(stream, "score_backward").take<float>(chunks * count);
  const unsigned column_parts = blocks_for(scores.gate_dim, kColumns);
  launch(stream, backward_keys,
         dim3(blocks_for(scores.keys, kKeys) * column_parts, static_cast<unsigned>(chunks),
              static_cast<unsigned>(a.qt.shape()[0])),
         kThreads, KeyTile::kBytes, scores, partials, static_cast<int>(column_parts),
         static_cast<int>(chunk_tokens));
  if (chunks == 1) return;
  launch(stream, add_chunks, dim3(blocks_for(count, kThreads)), kThreads, 0,
         a.dkt.as<float>().data(), partials, count, static_cast<int>(chunks));
}

}  // namespace

void score_backward(Stream& stream, const ScoreBackward& a) {
  const int64_t gate_dim = a.qt.shape()[2];
  const Scores scores{.dscores = a.dscores.as<float>().data(),
                      .blocks = a.selection.blocks.as<int32_t>().data(),
                      .scores = a.selection.scores.as<float>().data(),
                      .counts = a.selection.counts.as<int32_t>().data(),
                      .qt = a.qt.as<float>().data(),
                      .kt = a.kt.as<float>().data(),
                      .grid = view_of(a.grid),
                      .keys = a.kt.shape()[1],
                      .tokens = static_cast<int>(a.grid.tokens()),
                      .kept = static_cast<int>(a.selection.kept()),
                      .gate_dim = static_cast<int>(gate_dim),
                      .gate_keys = static_cast<int>(a.gate_keys),
                      .scale = 1.0f / std::sqrt(static_cast<float>(gate_dim))};
  launch(stream, backward_queries,
         dim3(blocks_for(scores.tokens, kWarps), static_cast<unsigned>(a.qt.shape()[0])), kThreads,
         0, scores, a.dqt.as<float>().data());
  launch_keys(stream, a, scores);
}

}  // namespace tessera::gpu
