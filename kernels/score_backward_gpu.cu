#include <algorithm>
#include <cmath>

#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/gate_backward.h"
#include "kernels/segment_grid.cuh"

// Two passes over the choices, 2 (k + 1) gate_dim products per token each. dqt: a warp per token
// gathers the keys it chose, which lie in the L2 cache. dkt: a warp owns a few blocks, whose sums
// are in shared memory, and goes through a chunk of the tokens in order; a token's slots ascend, so
// the few that lie in the range are found by bisection, a lane per token. The chunks, a function of
// the shapes alone, are summed in their order by a third kernel.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

/// Index of the first of `count` ascending numbers that is at least `value`; `count` if none is.
__device__ int first_at_least(const int32_t* numbers, int count, int value) {
  int begin = 0;
  while (count > 0) {
    const int half = count / 2;
    const bool below = numbers[begin + half] < value;
    begin += below ? half + 1 : 0;
    count = below ? count - half - 1 : half;
  }
  return begin;
}

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
    for (int s = 0; s < here; ++s) {
      const float of_slot = __shfl_sync(kWholeWarp, dscore, s);
      const float z = __shfl_sync(kWholeWarp, score, s);
      const int64_t key = int64_t{__shfl_sync(kWholeWarp, block, s)} * a.gate_keys;
      if (of_slot == 0) continue;
      for (int part = 0; part < a.gate_keys; ++part) {
        const float* const x = kt + (key + part) * a.gate_dim;
        const float factor =
            a.gate_keys == 1 ? of_slot : spread(a, of_slot, z, a.qt + row * a.gate_dim, x, lane);
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

__global__ void __launch_bounds__(kThreads, 2) backward_queries(Scores a, float* dqt) {
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

/// Blocks [begin, end) of a segment, owned by one warp.
struct BlockRange {
  int begin;
  int end;
  const float* kt;  // of the segment's block 0
  float* sums;      // of block `begin`, in shared memory
};

/// Adds the choices [from, to) and, if it is in the range, the runner-up of one token.
__device__ void add_token(const Scores& a, int64_t row, int from, int to, bool runner_up,
                          const BlockRange& range, int lane) {
  const float* const qt = a.qt + row * a.gate_dim;
  for (int i = from; i < to + (runner_up ? 1 : 0); ++i) {
    const int64_t slot = row * (a.kept + 1) + (i < to ? i : a.kept);
    const float dscore = a.dscores[slot] * a.scale;
    if (dscore == 0) continue;
    const int block = a.blocks[slot];
    for (int part = 0; part < a.gate_keys; ++part) {
      const float* const kt = range.kt + (int64_t{block} * a.gate_keys + part) * a.gate_dim;
      const float factor =
          a.gate_keys == 1 ? dscore : spread(a, dscore, a.scores[slot], qt, kt, lane);
      float* const sums = range.sums + ((block - range.begin) * a.gate_keys + part) * a.gate_dim;
      for (int d = lane; d < a.gate_dim; d += kWarpSize) sums[d] += factor * qt[d];
    }
  }
}

/// Rows [begin, end) of one group, 32 at a time: each lane looks what one of them chose.
__device__ void add_tokens(const Scores& a, int64_t group_row, int begin, int end,
                           const BlockRange& range, int lane) {
  for (int first = begin; first < end; first += kWarpSize) {
    int from = 0;
    int to = 0;
    bool runner_up = false;
    if (first + lane < end) {
      const int64_t row = group_row + first + lane;
      const int32_t* const blocks = a.blocks + row * (a.kept + 1);
      const int count = std::min(a.counts[row], a.kept);
      from = first_at_least(blocks, count, range.begin);
      to = from;
      while (to < count && blocks[to] < range.end) ++to;
      runner_up = blocks[a.kept] >= range.begin && blocks[a.kept] < range.end;
    }
    for (unsigned left = __ballot_sync(kWholeWarp, to > from || runner_up); left != 0;
         left &= left - 1) {
      const int t = __ffs(static_cast<int>(left)) - 1;
      add_token(a, group_row + first + t, __shfl_sync(kWholeWarp, from, t),
                __shfl_sync(kWholeWarp, to, t), __shfl_sync(kWholeWarp, runner_up ? 1 : 0, t) != 0,
                range, lane);
    }
  }
}

/// Block (range of gate blocks, chunk of tokens, group); `sums` [chunks, groups, keys, gate_dim].
__global__ void __launch_bounds__(kThreads, 2)
    backward_keys(Scores a, float* out, int max_blocks, int blocks_per_warp, int chunk_tokens) {
  SharedMemory shared;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int numbers = blocks_per_warp * a.gate_keys * a.gate_dim;
  float* const sums = shared.take<float>(warps * numbers) + warp * numbers;
  const int begin = (static_cast<int>(blockIdx.x) * warps + warp) * blocks_per_warp;
  const int end = std::min(max_blocks, begin + blocks_per_warp);
  const int64_t group = blockIdx.z;
  const int chunk_begin = std::min(a.tokens, static_cast<int>(blockIdx.y) * chunk_tokens);
  const int chunk_end = std::min(a.tokens, chunk_begin + chunk_tokens);
  // A lane always has the same columns.
  for (int i = 0; i < blocks_per_warp * a.gate_keys; ++i) {
    for (int d = lane; d < a.gate_dim; d += kWarpSize) sums[i * a.gate_dim + d] = 0;
  }
  const int32_t* const starts = a.grid.block_starts;
  const Stretches& pieces = a.grid.pieces;
  for (int s = range_of(starts, a.grid.segments, begin); s < a.grid.segments && starts[s] < end;
       ++s) {
    const int first_block = std::max(0, begin - starts[s]);
    const BlockRange range{first_block, std::min(end, starts[s + 1]) - starts[s],
                           a.kt + (group * a.keys + int64_t{starts[s]} * a.gate_keys) * a.gate_dim,
                           sums + (starts[s] + first_block - begin) * a.gate_keys * a.gate_dim};
    // Tokens choose only blocks before their own.
    const int64_t first_position = (int64_t{first_block} + 1) * a.grid.block;
    for (int p = pieces.begin_of(s); p < pieces.begin_of(s + 1); ++p) {
      const int64_t first_row =
          pieces.row(p) + std::max(int64_t{0}, first_position - pieces.first(p));
      if (first_row >= chunk_end) continue;
      add_tokens(a, group * a.tokens, std::max(static_cast<int>(first_row), chunk_begin),
                 std::min(pieces.row(p + 1), chunk_end), range, lane);
    }
  }
  float* const to =
      out + ((blockIdx.y * gridDim.z + group) * a.keys + int64_t{begin} * a.gate_keys) * a.gate_dim;
  for (int i = 0; i < (end - begin) * a.gate_keys; ++i) {
    for (int d = lane; d < a.gate_dim; d += kWarpSize) {
      to[int64_t{i} * a.gate_dim + d] = sums[i * a.gate_dim + d];
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    add_chunks(float* dkt, const float* partials, int64_t count, int chunks) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) sum += partials[chunk * count + i];
  dkt[i] = sum;
}

void launch_keys(Stream& stream, const ScoreBackward& a, const Scores& scores) {
  constexpr int64_t kTokensPerChunk = 1024;
  constexpr int64_t kPartialBytes = Stream::kWorkspaceBytes / 2;
  constexpr int64_t kSharedBytes = 64 * 1024;
  const int64_t count = a.dkt.elements();
  if (count == 0) return;
  const int64_t most = std::max<int64_t>(1, kPartialBytes / (count * int64_t{sizeof(float)}));
  const int64_t chunks = std::clamp<int64_t>(blocks_for(scores.tokens, kTokensPerChunk), 1, most);
  float* const partials = chunks == 1
                              ? a.dkt.as<float>().data()
                              : Workspace(stream, "score_backward").take<float>(chunks * count);
  // As many blocks at once as fit into shared memory, 64 at most.
  const int64_t block_bytes = a.gate_keys * scores.gate_dim * int64_t{sizeof(float)};
  int64_t warps = kWarps;
  int64_t blocks_per_warp = 8;
  while (blocks_per_warp > 1 && warps * blocks_per_warp * block_bytes > kSharedBytes) {
    blocks_per_warp /= 2;
  }
  while (warps > 1 && warps * block_bytes > kSharedBytes) warps /= 2;
  const int64_t max_blocks = a.grid.max_blocks();
  launch(stream, backward_keys,
         dim3(blocks_for(max_blocks, warps * blocks_per_warp), static_cast<unsigned>(chunks),
              static_cast<unsigned>(a.qt.shape()[0])),
         static_cast<int>(warps * kWarpSize),
         shared_bytes_of<float>(warps * blocks_per_warp * a.gate_keys * scores.gate_dim), scores,
         partials, static_cast<int>(max_blocks), static_cast<int>(blocks_per_warp),
         static_cast<int>(blocks_for(scores.tokens, chunks)));
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
