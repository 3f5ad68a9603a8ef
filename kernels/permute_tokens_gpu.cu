#include <algorithm>
#include <limits>

#include "kernels/core/block_scan.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/permute_tokens.h"

// The sort reads the experts twice, in chunks: one kernel counts each chunk, the second adds up the
// counts of the chunks before its own and numbers its pairs. A few thousand pairs are one chunk and
// one kernel. Counts are whole numbers, so that the order of their additions does not matter.
// Indices out of range move nothing.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

/// Pairs [first(i), first(i + 1)) of chunk i. Functions of the number of pairs alone.
struct Chunks {
  static constexpr int64_t kLeastPairs = 2048;
  static constexpr int64_t kMost = 128;

  explicit Chunks(int64_t number)
      : pairs(static_cast<int>(number)),
        count(static_cast<int>(std::clamp(number / kLeastPairs, int64_t{1}, kMost))) {}
  __device__ int first(int chunk) const { return static_cast<int>(int64_t{pairs} * chunk / count); }

  int pairs;
  int count;
};

__global__ void __launch_bounds__(kThreads)
    count_chunk(int* counts, const int* experts, Chunks chunks, int number) {
  SharedMemory shared;
  int* const own = shared.take<int>(number);
  for (int e = static_cast<int>(threadIdx.x); e < number; e += kThreads) own[e] = 0;
  __syncthreads();
  const int chunk = static_cast<int>(blockIdx.x);
  const int end = chunks.first(chunk + 1);
  for (int i = chunks.first(chunk) + static_cast<int>(threadIdx.x); i < end; i += kThreads) {
    const int e = experts[i];
    if (e >= 0 && e < number) atomicAdd(&own[e], 1);
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < number; e += kThreads) {
    counts[int64_t{chunk} * number + e] = own[e];
  }
}

struct Sort {
  int* row_of;
  int* source_of;
  int* offsets;
  float* dropped;     // may be null
  const int* counts;  // [chunks, experts]; not read for one chunk
  const int* experts;
  Chunks chunks;
  int number;  // of experts
  int capacity;
};

/// What a block of sort_chunk keeps of each expert.
struct Counters {
  int* total;    // [experts]: pairs; then the first row
  int* before;   // [experts]: pairs of the chunks before this one
  int* by_warp;  // [warps, experts]: pairs of each warp; then where its next one comes
};

/// The pairs of a warp are consecutive, so that warps are in the order of pairs.
struct Range {
  int begin;
  int end;
};
__device__ Range range_of_warp(const Sort& a) {
  const int chunk = static_cast<int>(blockIdx.x);
  const int first = a.chunks.first(chunk);
  const int count = a.chunks.first(chunk + 1) - first;
  const int each = (count + kThreads - 1) / kThreads * kWarpSize;
  const int begin = static_cast<int>(threadIdx.x) / kWarpSize * each;
  return {first + std::min(begin, count), first + std::min(begin + each, count)};
}

__device__ void count_pairs(const Sort& a, const Counters& c) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kWarps * a.number; i += kThreads) c.by_warp[i] = 0;
  for (int e = thread; e < a.number; e += kThreads) c.total[e] = c.before[e] = 0;
  __syncthreads();
  int* const own = c.by_warp + thread / kWarpSize * a.number;
  const Range range = range_of_warp(a);
  for (int i = range.begin + thread % kWarpSize; i < range.end; i += kWarpSize) {
    const int e = a.experts[i];
    if (e >= 0 && e < a.number) atomicAdd(&own[e], 1);
  }
  if (a.chunks.count > 1) {
    const int here = static_cast<int>(blockIdx.x) * a.number;
    for (int i = thread; i < a.chunks.count * a.number; i += kThreads) {
      const int count = a.counts[i];
      if (count == 0) continue;
      atomicAdd(&c.total[i % a.number], count);
      if (i < here) atomicAdd(&c.before[i % a.number], count);
    }
  }
  __syncthreads();
}

/// by_warp: the number, within its expert, of each warp's next pair. total: the first row.
__device__ void number_pairs(const Sort& a, const Counters& c, int* scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  int rows = 0;  // of the experts so far
  for (int first = 0; first < a.number; first += kThreads) {
    const int e = first + thread;
    int kept = 0;
    if (e < a.number) {
      int next = c.before[e];
      for (int warp = 0; warp < kWarps; ++warp) {
        const int count = c.by_warp[warp * a.number + e];
        c.by_warp[warp * a.number + e] = next;
        next += count;
      }
      kept = std::min(a.chunks.count > 1 ? c.total[e] : next, a.capacity);
    }
    int sum = 0;
    const int end = rows + block_prefix_sum(kept, scratch, sum);
    if (e < a.number) {
      c.total[e] = end - kept;
      if (blockIdx.x == 0) a.offsets[e + 1] = end;
    }
    rows += sum;
    __syncthreads();  // scratch is used again
  }
  if (blockIdx.x == 0 && thread == 0) {
    a.offsets[0] = 0;
    if (a.dropped != nullptr) *a.dropped += static_cast<float>(a.chunks.pairs - rows);
  }
}

/// Equal experts among 32 pairs find each other, and the first of them moves their counter on.
__device__ void place_pairs(const Sort& a, const Counters& c) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  int* const next = c.by_warp + static_cast<int>(threadIdx.x) / kWarpSize * a.number;
  const Range range = range_of_warp(a);
  for (int first = range.begin; first < range.end; first += kWarpSize) {
    const int i = first + lane;
    const int e = i < range.end ? a.experts[i] : -1;
    const bool valid = e >= 0 && e < a.number;
    const unsigned same = __match_any_sync(kWholeWarp, valid ? e : -1);
    const int earlier = __popc(same & ((1u << lane) - 1));
    const int number = valid ? next[e] + earlier : 0;
    __syncwarp();
    if (valid && earlier == 0) next[e] += __popc(same);
    __syncwarp();
    if (i >= range.end) continue;
    const bool kept = valid && number < a.capacity;
    const int row = kept ? c.total[e] + number : -1;
    a.row_of[i] = row;
    if (kept) a.source_of[row] = i;
  }
}

__global__ void __launch_bounds__(kThreads) sort_chunk(Sort a) {
  SharedMemory shared;
  int* const scratch = shared.take<int>(kWarpSize);
  Counters counters;
  counters.total = shared.take<int>(a.number);
  counters.before = shared.take<int>(a.number);
  counters.by_warp = shared.take<int>(kWarps * a.number);
  count_pairs(a, counters);
  number_pairs(a, counters, scratch);
  place_pairs(a, counters);
}

struct Merge {
  int* order;
  int* offsets;
  int* place;     // [experts, sources]: first row of each part, in the order of rows
  int* received;  // [sources, experts]: its first received row
  const int* counts;
  int sources;
  int experts;
  int64_t capacity;
};

/// One block: where parts of rows come from and go to.
__global__ void __launch_bounds__(kThreads) place_parts(Merge a) {
  SharedMemory shared;
  int* const scratch = shared.take<int>(kWarpSize);
  const int parts = a.sources * a.experts;
  int received = 0;
  int rows = 0;
  for (int first = 0; first < parts; first += kThreads) {
    const int i = first + static_cast<int>(threadIdx.x);
    int sum = 0;
    const int count = i < parts ? a.counts[i] : 0;
    const int start = received + block_prefix_sum(count, scratch, sum) - count;
    if (i < parts) a.received[i] = start;
    received += sum;
    __syncthreads();  // scratch is used again
    const int expert = i / a.sources;
    const int of_expert = i < parts ? a.counts[i % a.sources * a.experts + expert] : 0;
    const int place = rows + block_prefix_sum(of_expert, scratch, sum) - of_expert;
    if (i < parts) {
      a.place[i] = place;
      if (i % a.sources == 0) a.offsets[expert] = place;
    }
    rows += sum;
    __syncthreads();
  }
  for (int e = static_cast<int>(threadIdx.x); a.sources == 0 && e < a.experts; e += kThreads) {
    a.offsets[e] = 0;
  }
  if (threadIdx.x == 0) a.offsets[a.experts] = rows;
}

/// A lane per row finds its part, the last one that begins at or before it.
__global__ void __launch_bounds__(kThreads) order_rows(Merge a) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= a.capacity || row >= a.offsets[a.experts]) return;
  int low = 0;
  int high = a.sources * a.experts;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (a.place[middle] <= row ? low : high) = middle;
  }
  const int part = low % a.sources * a.experts + low / a.sources;
  a.order[row] = a.received[part] + static_cast<int>(row) - a.place[low];
}

__global__ void __launch_bounds__(kThreads)
    move_pairs(float* y, const float* x, const int* source_of, int64_t rows, int64_t pairs,
               bool inverse) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= rows) return;
  const int64_t pair = source_of[row];
  if (pair < 0 || pair >= pairs) return;
  y[inverse ? pair : row] = x[inverse ? row : pair];
}

}  // namespace

void sort_by_expert(Stream& stream, const SortByExpert& a) {
  const int64_t number = a.offsets.elements() - 1;
  const int64_t pairs = a.experts.elements();
  CHECK(number <= kGpuMostSortedExperts, "sort_by_expert: ", number, " experts, expected at most ",
        kGpuMostSortedExperts);
  CHECK(pairs <= std::numeric_limits<int32_t>::max(), "sort_by_expert: ", pairs,
        " pairs, expected fewer than 2^31");
  const Chunks chunks(pairs);
  const int* const experts = a.experts.as<int32_t>().data();
  int* counts = nullptr;
  if (chunks.count > 1) {
    counts = Workspace(stream, "sort_by_expert").take<int>(chunks.count * number);
    launch(stream, count_chunk, dim3(static_cast<unsigned>(chunks.count)), kThreads,
           shared_bytes_of<int>(number), counts, experts, chunks, static_cast<int>(number));
  }
  const int64_t most = std::numeric_limits<int32_t>::max();
  const int64_t shared = shared_bytes_of<int>(kWarpSize) + 2 * shared_bytes_of<int>(number) +
                         shared_bytes_of<int>(kWarps * number);
  launch(stream, sort_chunk, dim3(static_cast<unsigned>(chunks.count)), kThreads, shared,
         Sort{.row_of = a.row_of.as<int32_t>().data(),
              .source_of = a.source_of.as<int32_t>().data(),
              .offsets = a.offsets.as<int32_t>().data(),
              .dropped = a.dropped.empty() ? nullptr : a.dropped.as<float>().data(),
              .counts = counts,
              .experts = experts,
              .chunks = chunks,
              .number = static_cast<int>(number),
              .capacity = static_cast<int>(a.capacity > 0 ? std::min(a.capacity, most) : most)});
}

void merge_expert_rows(Stream& stream, const MergeExpertRows& a) {
  const int64_t parts = a.counts.elements();
  Workspace workspace(stream, "merge_expert_rows");
  const Merge merge{.order = a.order.as<int32_t>().data(),
                    .offsets = a.offsets.as<int32_t>().data(),
                    .place = workspace.take<int>(parts),
                    .received = workspace.take<int>(parts),
                    .counts = a.counts.as<int32_t>().data(),
                    .sources = static_cast<int>(a.counts.shape()[0]),
                    .experts = static_cast<int>(a.counts.shape()[1]),
                    .capacity = a.order.elements()};
  launch(stream, place_parts, dim3(1), kThreads, shared_bytes_of<int>(kWarpSize), merge);
  if (parts == 0) return;
  launch(stream, order_rows, dim3(blocks_for(merge.capacity, kThreads)), kThreads, 0, merge);
}

void permute_pairs(Stream& stream, const PermutePairs& a) {
  const int64_t rows = a.source_of.elements();
  const int64_t pairs = a.inverse ? a.y.elements() : a.x.elements();
  float* const y = a.y.as<float>().data();
  if (a.inverse && rows < pairs) {
    CUDA_CHECK(cudaMemsetAsync(y, 0, static_cast<size_t>(pairs) * sizeof(float),
                               static_cast<cudaStream_t>(stream.handle())));
  }
  launch(stream, move_pairs, dim3(blocks_for(rows, kThreads)), kThreads, 0, y,
         a.x.as<float>().data(), a.source_of.as<int32_t>().data(), rows, pairs, a.inverse);
}

}  // namespace tessera::gpu
