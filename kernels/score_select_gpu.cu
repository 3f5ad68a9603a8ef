#include <algorithm>

#include "kernels/block_choice.cuh"
#include "kernels/block_selection.h"
#include "kernels/core/device_check.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/ptx.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/gate_score.cuh"
#include "kernels/gate_tree.cuh"

// A block of lanes has up to 64 tokens of one block of the grid: they share their candidates, whose
// gate keys stream through shared memory once, 64 rows at a time. The products are fused
// multiply-adds in f32 in the order of gate_score.h, so scores, and with them choices, are those of
// the CPU to the last bit; tensor cores would multiply faster, but round in an order of their own.
// Per token the kernel keeps only keys that may still be among the k + 1 best, in ascending order
// of block, and throws out the others whenever their place is used up.
// Work: tokens * blocks / 2 * gate_dim multiply-adds; bytes: kt once per 64 tokens, from the second
// cache; the largest blocks come first.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kTeam = 16;             // lanes that share the tokens, and lanes that share the keys
constexpr int kEach = 4;              // keys of a lane
constexpr int kRows = kTeam * kEach;  // gate keys at once
constexpr int kSlice = 64;            // dimensions at once
constexpr int kStride = kSlice + 4;   // of a row of gate keys: no two lanes want the same bank
constexpr int kStage = kRows * kStride;
/// Shared memory that lets two blocks run on a multiprocessor, and what one may have at most.
constexpr int64_t kSharedForTwo = 100 * 1024;
constexpr int64_t kMostShared = 160 * 1024;

struct Select {
  int32_t* blocks;  // [groups, tokens, kept + 1]
  float* scores;    // [groups, tokens, kept + 1]
  int32_t* counts;  // [groups, tokens]
  const float* qt;  // [groups, tokens, gate_dim]
  const float* kt;  // [groups, max_blocks * gate_keys, gate_dim]
  GridView grid;
  BlockRule rule;
  TreeSearch tree;
  float scale;  // gate_scale
  int gate_dim;
  int gate_keys;
  int length;    // tokens of a part at most
  int capacity;  // keys that are kept per token at most
  bool aligned;  // rows of qt and kt can be read 16 bytes at a time
};

/// Floats from one row of queries to the next: a multiple of 4 that is odd in units of 4.
__host__ __device__ constexpr int query_stride(int gate_dim) {
  return (gate_dim + 3) / 4 / 2 * 8 + 4;
}

/// What the block of lanes has in shared memory.
struct Scratch {
  float* queries;   // [kTokens, query_stride], zeros behind the last token and dimension
  float* rows;      // [2, kRows, kStride]: gate keys; then the products [kTokens, kRows + 1]
  int32_t* keys;    // [length, capacity]
  int32_t* blocks;  // [length, capacity]: candidates with these keys, ascending
  int* used;        // [length]
  int32_t* bounds;  // [length]: keys below it are not wanted any more
};

/// The tokens of a block of lanes.
struct Task {
  int64_t first_token;
  int64_t first_key;  // row of kt
  int tokens;
  int candidates;
};

/// Dimensions of slice `slice`, rounded up to whole fours.
__device__ int slice_width(const Select& a, int slice) {
  const int left = a.gate_dim - slice * kSlice;
  return left < kSlice ? (left + 3) / 4 * 4 : kSlice;
}

/// Starts to copy a slice of `count` gate keys from row `first` on. Zeros fill whole rows and
/// fours.
__device__ void load_rows(const Select& a, const Task& task, int first, int count, int slice,
                          float* to) {
  const int width = slice_width(a, slice);
  const float* const from = a.kt + (task.first_key + first) * a.gate_dim + slice * kSlice;
  if (a.aligned) {
    for (int i = static_cast<int>(threadIdx.x); i < kRows * (kSlice / 4); i += kThreads) {
      const int row = i / (kSlice / 4);
      const int d = i % (kSlice / 4) * 4;
      const bool valid = row < count;
      if (d >= width) continue;
      copy_async(to + row * kStride + d, valid ? from + int64_t{row} * a.gate_dim + d : from,
                 valid);
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kSlice; i += kThreads) {
    const int row = i / kSlice;
    const int d = i % kSlice;
    if (d >= width) continue;
    const bool valid = row < count && slice * kSlice + d < a.gate_dim;
    to[row * kStride + d] = valid ? from[int64_t{row} * a.gate_dim + d] : 0.0f;
  }
}

__device__ void load_queries(const Select& a, const Task& task, int tokens, float* to) {
  const int stride = query_stride(a.gate_dim);
  for (int i = static_cast<int>(threadIdx.x); i < tokens * stride; i += kThreads) {
    const int t = i / stride;
    const int d = i - t * stride;
    const bool valid = t < task.tokens && d < a.gate_dim;
    to[i] = valid ? a.qt[(task.first_token + t) * a.gate_dim + d] : 0.0f;
  }
}

/// A lane's place among the teams: tokens at_token + 16 i, keys at_key + 16 j. A warp has 8 tokens
/// by 4 keys at a time.
struct Place {
  int token;
  int key;
};
__device__ Place place_of_lane() {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  return {warp % 2 * 8 + lane % 8, warp / 2 * 4 + lane / 8};
}

/// sums += queries of a slice * gate keys, dimension after dimension.
template <int kDeep>
__device__ void multiply(const Select& a, const float* queries, const float* rows, int slice,
                         int count, float (&sums)[kDeep][kEach]) {
  const Place at = place_of_lane();
  const int stride = query_stride(a.gate_dim);
  const int width = slice_width(a, slice);
  const float* const q = queries + at.token * stride + slice * kSlice;
  const float* const k = rows + at.key * kStride;
  const int used = (count + kTeam - 1) / kTeam;  // of the keys of a lane
#pragma unroll 2
  for (int d = 0; d < width; d += 4) {
    float4 query[kDeep];
#pragma unroll
    for (int i = 0; i < kDeep; ++i) {
      query[i] = *reinterpret_cast<const float4*>(q + i * kTeam * stride + d);
    }
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (j >= used) continue;
      const float4 key = *reinterpret_cast<const float4*>(k + j * kTeam * kStride + d);
#pragma unroll
      for (int i = 0; i < kDeep; ++i) {
        float& sum = sums[i][j];
        sum = __fmaf_rn(key.x, query[i].x, sum);
        sum = __fmaf_rn(key.y, query[i].y, sum);
        sum = __fmaf_rn(key.z, query[i].z, sum);
        sum = __fmaf_rn(key.w, query[i].w, sum);
      }
    }
  }
}

/// Products [kTokens, kRows + 1] from the lanes' sums, which start again.
template <int kDeep>
__device__ void store_products(const Select& a, float (&sums)[kDeep][kEach], float* products) {
  const Place at = place_of_lane();
#pragma unroll
  for (int i = 0; i < kDeep; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      products[(at.token + i * kTeam) * (kRows + 1) + at.key + j * kTeam] =
          __fmaf_rn(sums[i][j], a.scale, 0.0f);
      sums[i][j] = 0;
    }
  }
}

/// Throws out what is not among the k + 1 best of a token.
__device__ void shrink(const Select& a, const Scratch& s, int t) {
  int32_t* const keys = s.keys + t * a.capacity;
  int32_t* const blocks = s.blocks + t * a.capacity;
  const int kept = static_cast<int>(a.rule.kept);
  const Bound bound = find_bound(keys, s.used[t], kept + 1);
  for_each_best(
      keys, s.used[t], bound, [&](int slot) { return blocks[slot]; },
      [&](int block, int32_t key, int rank) {
        if (rank < 0) return;
        keys[rank] = key;
        blocks[rank] = block;
      });
  if (threadIdx.x % kWarpSize == 0) {
    s.used[t] = kept + 1;
    s.bounds[t] = bound.key;
  }
  __syncwarp();
}

/// Adds `count` candidates from `first` on to what their tokens keep; a warp per token.
__device__ void add_candidates(const Select& a, const Task& task, const Scratch& s,
                               const float* products, int first, int count) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int each = a.gate_keys > kRows ? 1 : a.gate_keys;
  for (int t = static_cast<int>(threadIdx.x) / kWarpSize; t < task.tokens; t += kWarps) {
    for (int base = 0; base < count; base += kWarpSize) {
      const int i = base + lane;
      const float* const z = products + t * (kRows + 1) + i * each;
      const bool valid = i < count;
      const int32_t key = valid ? score_key(each == 1 ? *z : gate_log_sum(z, each)) : 0;
      unsigned wanted = __ballot_sync(kWholeWarp, valid && key >= s.bounds[t]);
      if (s.used[t] + __popc(wanted) > a.capacity) {
        shrink(a, s, t);
        wanted = __ballot_sync(kWholeWarp, valid && key >= s.bounds[t]);
      }
      const int used = s.used[t];
      if (((wanted >> lane) & 1) != 0) {
        const int to = t * a.capacity + used + __popc(wanted & ((1u << lane) - 1));
        s.keys[to] = key;
        s.blocks[to] = first + i;
      }
      __syncwarp();
      if (lane == 0) s.used[t] = used + __popc(wanted);
      __syncwarp();
    }
  }
}

/// Scores of blocks with more gate keys than fit: a lane per token and block.
__device__ void score_by_lanes(const Select& a, const Task& task, const Scratch& s, int first,
                               int count, float* products) {
  const int stride = query_stride(a.gate_dim);
  for (int i = static_cast<int>(threadIdx.x); i < task.tokens * count; i += kThreads) {
    const int64_t key = task.first_key + int64_t{first + i % count} * a.gate_keys;
    products[i / count * (kRows + 1) + i % count] = gate_score(
        s.queries + i / count * stride, a.kt + key * a.gate_dim, a.gate_dim, a.gate_keys, a.scale);
  }
}

/// Goes through all candidates. The next slice of gate keys is on its way while one is used; the
/// products take the place of the last slice.
template <int kDeep>
__device__ void score_candidates(const Select& a, const Task& task, const Scratch& s) {
  const bool by_lanes = a.gate_keys > kRows;
  const int blocks = by_lanes ? kRows : kRows / a.gate_keys;  // at once
  const int slices = by_lanes ? 1 : (a.gate_dim + kSlice - 1) / kSlice;
  const int steps = (task.candidates + blocks - 1) / blocks * slices;
  const auto count_of = [&](int step) {
    const int left = task.candidates - step / slices * blocks;
    return left < blocks ? left : blocks;
  };
  const auto load = [&](int step) {
    if (step < steps && !by_lanes) {
      load_rows(a, task, step / slices * blocks * a.gate_keys, count_of(step) * a.gate_keys,
                step % slices, s.rows + step % 2 * kStage);
    }
    close_copies();
  };
  float sums[kDeep][kEach] = {};
  load(0);
  for (int step = 0; step < steps; ++step) {
    load(step + 1);
    wait_for_copies<1>();
    __syncthreads();
    float* const rows = s.rows + step % 2 * kStage;
    const int count = count_of(step);
    const int first = step / slices * blocks;
    if (by_lanes) {
      score_by_lanes(a, task, s, first, count, rows);
    } else {
      multiply<kDeep>(a, s.queries, rows, step % slices, count * a.gate_keys, sums);
      __syncthreads();  // all have read the rows
      if (step % slices == slices - 1) store_products<kDeep>(a, sums, rows);
    }
    if (step % slices == slices - 1) {
      __syncthreads();
      add_candidates(a, task, s, rows, first, count);
      __syncthreads();  // the next but one step loads there
    }
  }
}

/// Rows of the selection; a warp per token.
__device__ void write_rows(const Select& a, const Task& task, const Scratch& s) {
  const int kept = static_cast<int>(a.rule.kept);
  for (int t = static_cast<int>(threadIdx.x) / kWarpSize; t < task.tokens; t += kWarps) {
    const int64_t first = (task.first_token + t) * (kept + 1);
    const SelectionRow row{a.blocks + first, a.scores + first, kept};
    const int32_t* const keys = s.keys + t * a.capacity;
    const int32_t* const blocks = s.blocks + t * a.capacity;
    const auto block_of = [&](int slot) {
      return static_cast<int>(a.rule.sink_blocks) + blocks[slot];
    };
    if (task.candidates <= kept) {
      write_all(row, keys, task.candidates, block_of);
    } else {
      write_best(row, keys, s.used[t], block_of);
    }
    if (threadIdx.x % kWarpSize == 0) {
      a.counts[task.first_token + t] = task.candidates < kept ? task.candidates : kept;
    }
  }
}

/// A block of lanes per part of up to 16 kDeep tokens and group.
template <int kDeep>
__global__ void __launch_bounds__(kThreads, 2) select_blocks(Select a) {
  constexpr int kTokens = kTeam * kDeep;
  const StretchPart part =
      find_part(a.grid.pieces, a.length, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  if (part.count == 0) return;
  const int segment = a.grid.pieces.segment(part.stretch);
  const auto candidates = static_cast<int>(a.rule.candidates(part.first / a.grid.block));
  if (needs_tree(a.tree, candidates, a.rule.kept)) return;
  const int64_t group = blockIdx.y;
  const Task task{
      .first_token = group * a.grid.tokens + a.grid.pieces.origin(part.stretch) + part.first,
      .first_key = (group * a.grid.max_blocks + a.grid.block_starts[segment] + a.rule.sink_blocks) *
                   a.gate_keys,
      .tokens = part.count,
      .candidates = candidates};
  SharedMemory shared;
  Scratch s;
  s.queries = shared.take<float>(kTokens * query_stride(a.gate_dim));
  s.rows = shared.take<float>(2 * kStage);
  s.keys = shared.take<int32_t>(a.length * a.capacity);
  s.blocks = shared.take<int32_t>(a.length * a.capacity);
  s.used = shared.take<int>(a.length);
  s.bounds = shared.take<int32_t>(a.length);
  for (int t = static_cast<int>(threadIdx.x); t < a.length; t += kThreads) {
    s.used[t] = 0;
    s.bounds[t] = INT32_MIN;
  }
  load_queries(a, task, kTokens, s.queries);
  score_candidates<kDeep>(a, task, s);
  __syncthreads();
  write_rows(a, task, s);
}

__global__ void check_blocks(GridView grid) {
  device_check(grid.block_count() <= grid.max_blocks,
               "score_select: the grid has more than max_blocks blocks");
}

int64_t shared_bytes(const Select& a, int deep) {
  return shared_bytes_of<float>(int64_t{kTeam} * deep * query_stride(a.gate_dim)) +
         shared_bytes_of<float>(2 * kStage) +
         2 * shared_bytes_of<int32_t>(int64_t{a.length} * a.capacity) +
         2 * shared_bytes_of<int>(a.length);
}

/// As many tokens per block of lanes as leave room for two of them, or for one.
void choose_length(Select& a) {
  for (const int64_t most : {kSharedForTwo, kMostShared}) {
    for (a.length = 4 * kTeam; a.length >= 1; a.length /= 2) {
      const int deep = std::max(1, a.length / kTeam);
      if (a.grid.block % a.length == 0 && shared_bytes(a, deep) <= most) return;
      // Few tokens repeat much work: rather one block of lanes than fewer than a tile.
      if (most == kSharedForTwo && a.length == kTeam) break;
    }
  }
  throw Error(__FILE__, __LINE__,
              concat("score_select: kept is ", a.rule.kept, " and gate_dim ", a.gate_dim,
                     ", too much for the ", kMostShared, " bytes of shared memory"));
}

}  // namespace

void score_select(Stream& stream, const ScoreSelect& a) {
  const int64_t groups = a.qt.shape()[0];
  const int64_t gate_dim = a.qt.shape()[2];
  Select select{.blocks = a.selection.blocks.as<int32_t>().data(),
                .scores = a.selection.scores.as<float>().data(),
                .counts = a.selection.counts.as<int32_t>().data(),
                .qt = a.qt.as<float>().data(),
                .kt = a.kt.as<float>().data(),
                .grid = view_of(a.grid),
                .rule = a.rule,
                .tree = a.tree,
                .scale = gate_scale(gate_dim),
                .gate_dim = static_cast<int>(gate_dim),
                .gate_keys = static_cast<int>(a.gate_keys),
                .length = 0,
                .capacity = 0,
                .aligned = in_packs(a.kt.as<float>().data(), gate_dim)};
  // Room for a warp's candidates besides the best; or for all there can be.
  select.capacity = static_cast<int>(
      std::min((a.rule.kept + 1 + 2 * kWarpSize + 31) / 32 * 32, a.grid.max_blocks()));
  choose_length(select);
  const dim3 grid(
      static_cast<unsigned>(part_bound(select.grid.pieces, select.grid.tokens, select.length)),
      static_cast<unsigned>(groups));
  launch(stream, check_blocks, dim3(1), 1, 0, select.grid);
  if (a.tree.enabled()) select_in_trees(stream, a, select.grid);
  const int deep = std::max(1, select.length / kTeam);
  launch(stream,
         deep == 4   ? select_blocks<4>
         : deep == 2 ? select_blocks<2>
                     : select_blocks<1>,
         grid, kThreads, shared_bytes(select, deep), select);
}

}  // namespace tessera::gpu
