#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/gate_stats.h"

// The selection is read once: a block adds up kRows rows of (group, token) in double, and one block
// adds the blocks' sums in order. With a tree the same block then looks for the sampled tokens
// among its rows, which are few, and scores all of their candidates.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 1024;  // of a block
constexpr int kSums = GateStats::kSize;

struct Figures {
  double sums[kSums];
};

struct Selected {
  const int32_t* blocks;  // [groups, tokens, kept + 1]
  const float* scores;
  const int32_t* counts;  // [groups, tokens]
  const float* widths;    // [groups]
  const int32_t* positions;
  float strength;
  int64_t tokens;
  int64_t rows;  // groups * tokens
  int64_t block;
  BlockRule rule;
};

struct Recall {
  const float* qt;  // [groups, tokens, gate_dim]; null without a tree
  const float* kt;  // [groups, key_blocks, gate_dim]
  const int32_t* starts;
  const int32_t* piece_segments;  // may be null
  const int32_t* block_starts;
  int64_t pieces;
  int64_t key_blocks;
  int64_t gate_dim;
  float scale;
  TreeSearch tree;
};

__device__ void add_row(const Selected& a, int64_t row, Figures& figures) {
  const int64_t kept = a.rule.kept;
  const int64_t own = a.positions[row % a.tokens] / a.block;
  const int64_t count = a.counts[row];
  // Sink and window may overlap near the start of a segment.
  const int64_t window_begin = std::max<int64_t>(0, own - a.rule.window_blocks + 1);
  const int64_t forced = own + 1 - window_begin + std::min(a.rule.sink_blocks, window_begin);
  const auto visible = static_cast<double>(own + 1);
  figures.sums[0] += 1;
  figures.sums[1] += (visible - static_cast<double>(forced + count)) / visible;
  figures.sums[2] += static_cast<double>(count);
  const float width = a.widths[row / a.tokens];
  const float* const scores = a.scores + row * (kept + 1);
  const bool ramped = a.blocks[row * (kept + 1) + kept] >= 0;
  for (int64_t slot = 0; slot < count; ++slot) {
    const float u = (scores[slot] - scores[kept]) / width;
    const float open = fminf(fmaxf(u, 0.0f), 1.0f);
    figures.sums[3] += ramped ? 1 - a.strength * (1 - open) : 1;
  }
}

/// gate_product of kernels/gate_score.h, to the last bit.
__device__ float product(const float* qt, const float* kt, int64_t gate_dim, float scale) {
  float sum = 0;
  for (int64_t d = 0; d < gate_dim; ++d) sum = __fmaf_rn(kt[d], qt[d], sum);
  return __fmaf_rn(sum, scale, 0.0f);
}

/// score_key of kernels/gate_score.h: a whole number that orders scores, a NaN first.
__device__ int key_of(float z) {
  const int bits = z == z ? __float_as_int(z) : -1;
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

__device__ int64_t segment_of(const Recall& a, int64_t token) {
  int64_t low = 0;
  int64_t high = a.pieces;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (a.starts[middle] <= token ? low : high) = middle;
  }
  return a.piece_segments == nullptr ? low : a.piece_segments[low];
}

__device__ int64_t candidates_of(const Selected& a, int64_t row) {
  return a.rule.candidates(a.positions[row % a.tokens] / a.block);
}
__device__ bool is_sample(const Selected& a, const Recall& recall, int64_t row) {
  if (a.positions[row % a.tokens] % GateStats::kSampled != GateStats::kSampled - 1) return false;
  return recall.tree.first_level(candidates_of(a, row), a.rule.kept) > 0;
}

/// How many of the row's chosen blocks are among the k best of all candidates: fewer than k are
/// better than it, which a larger score is, or an equal one of a later block. By the whole block;
/// `keys` and `better` [kept] are shared memory.
__device__ int count_best(const Selected& a, const Recall& recall, int64_t row, int* keys,
                          int* better) {
  const int lane = static_cast<int>(threadIdx.x);
  const int kept = static_cast<int>(a.rule.kept);
  const int64_t sink = a.rule.sink_blocks;
  const int64_t candidates = candidates_of(a, row);
  const int32_t* const blocks = a.blocks + row * (kept + 1);
  const float* const qt = recall.qt + row * recall.gate_dim;
  const int64_t first_key = row / a.tokens * recall.key_blocks + sink +
                            recall.block_starts[segment_of(recall, row % a.tokens)];
  const float* const kt = recall.kt + first_key * recall.gate_dim;
  const auto key = [&](int64_t i) {
    return key_of(product(qt, kt + i * recall.gate_dim, recall.gate_dim, recall.scale));
  };
  for (int slot = lane; slot < kept; slot += kThreads) {
    keys[slot] = blocks[slot] >= sink ? key(blocks[slot] - sink) : 0;
    better[slot] = 0;
  }
  __syncthreads();
  for (int64_t begin = 0; begin < candidates; begin += kThreads) {
    const int64_t i = begin + lane;
    const int mine = i < candidates ? key(i) : 0;
    for (int slot = 0; slot < kept; ++slot) {
      const bool beats =
          i < candidates && (mine > keys[slot] || (mine == keys[slot] && i + sink > blocks[slot]));
      const unsigned all = __ballot_sync(kWholeWarp, beats);
      if (lane % kWarpSize == 0 && all != 0) atomicAdd(&better[slot], __popc(all));
    }
  }
  __syncthreads();
  int found = 0;
  for (int slot = 0; slot < kept; ++slot) found += blocks[slot] >= sink && better[slot] < kept;
  __syncthreads();
  return found;
}

/// Sums over the block, of the first lane.
__device__ void add_over_block(Figures& figures, Figures* of_warps) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (double& sum : figures.sums) {
    for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
      sum += __shfl_xor_sync(kWholeWarp, sum, bits);
    }
  }
  if (lane == 0) of_warps[threadIdx.x / kWarpSize] = figures;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kThreads / kWarpSize; ++warp) {
    for (int i = 0; i < kSums; ++i) figures.sums[i] += of_warps[warp].sums[i];
  }
}

__global__ void __launch_bounds__(kThreads) add_rows(Figures* parts, Selected a, Recall recall) {
  SharedMemory shared;
  auto* const of_warps = shared.take<Figures>(kThreads / kWarpSize);
  int* const keys = shared.take<int>(static_cast<int>(a.rule.kept));
  int* const better = shared.take<int>(static_cast<int>(a.rule.kept));
  const int64_t begin = int64_t{blockIdx.x} * kRows;
  Figures figures{};
  for (int64_t first = begin; first < begin + kRows && first < a.rows; first += kThreads) {
    const int64_t row = first + threadIdx.x;
    const bool inside = row < a.rows;
    if (inside) add_row(a, row, figures);
    if (recall.qt == nullptr) continue;
    if (__syncthreads_or(inside && is_sample(a, recall, row)) == 0) continue;
    for (int64_t sample = first; sample < first + kThreads && sample < a.rows; ++sample) {
      if (!is_sample(a, recall, sample)) continue;
      const int found = count_best(a, recall, sample, keys, better);
      if (threadIdx.x != 0) continue;
      figures.sums[4] += found;
      figures.sums[5] += static_cast<double>(a.rule.kept);
    }
  }
  add_over_block(figures, of_warps);
  if (threadIdx.x == 0) parts[blockIdx.x] = figures;
}

__global__ void __launch_bounds__(kThreads)
    add_parts(float* stats, const Figures* parts, int count) {
  SharedMemory shared;
  auto* const of_warps = shared.take<Figures>(kThreads / kWarpSize);
  Figures figures{};
  for (int part = static_cast<int>(threadIdx.x); part < count; part += kThreads) {
    for (int i = 0; i < kSums; ++i) figures.sums[i] += parts[part].sums[i];
  }
  add_over_block(figures, of_warps);
  if (threadIdx.x != 0) return;
  for (int i = 0; i < kSums; ++i) stats[i] += static_cast<float>(figures.sums[i]);
}

Recall recall_of(const GateStats& a) {
  if (!a.tree.enabled()) return {};
  const int64_t gate_dim = a.qt.shape()[2];
  const auto& segments = a.grid.piece_segments;
  return {.qt = a.qt.as<float>().data(),
          .kt = a.kt.as<float>().data(),
          .starts = a.grid.starts.as<int32_t>().data(),
          .piece_segments = segments.empty() ? nullptr : segments.as<int32_t>().data(),
          .block_starts = a.grid.block_starts.as<int32_t>().data(),
          .pieces = a.grid.pieces(),
          .key_blocks = a.kt.shape()[1],
          .gate_dim = gate_dim,
          .scale = 1.0f / std::sqrt(static_cast<float>(gate_dim)),
          .tree = a.tree};
}

}  // namespace

void gate_stats(Stream& stream, const GateStats& a) {
  const Shape slots = a.selection.scores.shape();
  const Selected of{.blocks = a.selection.blocks.as<int32_t>().data(),
                    .scores = a.selection.scores.as<float>().data(),
                    .counts = a.selection.counts.as<int32_t>().data(),
                    .widths = a.ramp.widths.as<float>().data(),
                    .positions = a.grid.positions.as<int32_t>().data(),
                    .strength = a.ramp.strength,
                    .tokens = slots[1],
                    .rows = slots[0] * slots[1],
                    .block = a.grid.block,
                    .rule = {a.rule.sink_blocks, a.rule.window_blocks, slots[2] - 1}};
  const unsigned blocks = blocks_for(of.rows, kRows);
  auto* const parts = Workspace(stream, "gate_stats").take<Figures>(blocks);
  const int64_t sums = shared_bytes_of<Figures>(kThreads / kWarpSize);
  launch(stream, add_rows, dim3(blocks), kThreads, sums + 2 * shared_bytes_of<int>(of.rule.kept),
         parts, of, recall_of(a));
  launch(stream, add_parts, dim3(1), kThreads, sums, a.stats.as<float>().data(), parts,
         static_cast<int>(blocks));
}

}  // namespace tessera::gpu
