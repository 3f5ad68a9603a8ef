#include <utility>

#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/radix_sort.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"

// Radix sort, from the lowest digit: count the digits of each tile of keys, add up the counts of
// all smaller digits and of earlier tiles, and put the keys where these sums say.

namespace tessera::gpu {
namespace {

constexpr int kDigits = 256;
constexpr int kThreads = 256;  // a lane per digit
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kTile = 2048;
constexpr int kScanThreads = 1024;

struct Pass {
  const int32_t* keys;
  const int32_t* places;  // null: the key's own place
  int32_t* to_keys;
  int32_t* to_places;
  int32_t* sums;  // [kDigits, tiles]
  int count;
  int shift;

  __device__ int digit(int i) const { return (keys[i] >> shift) & (kDigits - 1); }
};

__global__ void __launch_bounds__(kThreads) count_digits(Pass a) {
  SharedMemory shared;
  int* const counts = shared.take<int>(kDigits);
  counts[threadIdx.x] = 0;
  __syncthreads();
  const int first = static_cast<int>(blockIdx.x) * kTile + static_cast<int>(threadIdx.x);
  for (int i = first; i < first + kTile && i < a.count; i += kThreads) {
    atomicAdd(&counts[a.digit(i)], 1);
  }
  __syncthreads();
  a.sums[threadIdx.x * gridDim.x + blockIdx.x] = counts[threadIdx.x];
}

/// Each number becomes the sum of those before it. One block: a lane has a range of them.
__global__ void __launch_bounds__(kScanThreads) add_up(int32_t* numbers, int count) {
  SharedMemory shared;
  int* const totals = shared.take<int>(kScanThreads);
  const int lane = static_cast<int>(threadIdx.x);
  const int each = (count + kScanThreads - 1) / kScanThreads;
  const int begin = lane * each;
  int total = 0;
  for (int i = begin; i < begin + each && i < count; ++i) total += numbers[i];
  totals[lane] = total;
  __syncthreads();
  for (int offset = 1; offset < kScanThreads; offset *= 2) {
    const int before = lane >= offset ? totals[lane - offset] : 0;
    __syncthreads();
    totals[lane] += before;
    __syncthreads();
  }
  int sum = totals[lane] - total;
  for (int i = begin; i < begin + each && i < count; ++i) {
    const int number = numbers[i];
    numbers[i] = sum;
    sum += number;
  }
}

/// A tile goes round by round, a key per lane; within a round by warp, and within a warp by lane.
__global__ void __launch_bounds__(kThreads) move_keys(Pass a) {
  SharedMemory shared;
  int* const next = shared.take<int>(kDigits);  // where the next key of a digit goes
  int* const of_warps = shared.take<int>(kWarps * kDigits);
  const int lane = static_cast<int>(threadIdx.x);
  int* const of_warp = of_warps + lane / kWarpSize * kDigits;
  next[lane] = a.sums[threadIdx.x * gridDim.x + blockIdx.x];
  const int begin = static_cast<int>(blockIdx.x) * kTile;
  for (int first = begin; first < begin + kTile && first < a.count; first += kThreads) {
    for (int warp = 0; warp < kWarps; ++warp) of_warps[warp * kDigits + lane] = 0;
    __syncthreads();
    const int i = first + lane;
    const bool inside = i < a.count;
    const int digit = inside ? a.digit(i) : kDigits;
    const unsigned alike = __match_any_sync(kWholeWarp, digit);
    const int rank = __popc(alike & ((1u << (lane % kWarpSize)) - 1));
    if (inside && rank == 0) of_warp[digit] = __popc(alike);
    __syncthreads();
    int place = next[lane];  // the lane's digit here
    for (int warp = 0; warp < kWarps; ++warp) {
      const int count = of_warps[warp * kDigits + lane];
      of_warps[warp * kDigits + lane] = place;
      place += count;
    }
    next[lane] = place;
    __syncthreads();
    if (inside) {
      const int to = of_warp[digit] + rank;
      a.to_keys[to] = a.keys[i];
      a.to_places[to] = a.places == nullptr ? i : a.places[i];
    }
    __syncthreads();
  }
}

}  // namespace

SortedKeys sort_keys(Stream& stream, Workspace& workspace, int32_t* keys, int64_t count,
                     int64_t largest) {
  const unsigned tiles = blocks_for(count, kTile);
  auto* const sums = workspace.take<int32_t>(int64_t{kDigits} * tiles);
  SortedKeys from{keys, nullptr};
  SortedKeys to{workspace.take<int32_t>(count), workspace.take<int32_t>(count)};
  auto* const spare = workspace.take<int32_t>(count);
  int shift = 0;
  do {
    const Pass pass{.keys = from.keys,
                    .places = from.places,
                    .to_keys = to.keys,
                    .to_places = to.places,
                    .sums = sums,
                    .count = static_cast<int>(count),
                    .shift = shift};
    launch(stream, count_digits, dim3(tiles), kThreads, shared_bytes_of<int>(kDigits), pass);
    launch(stream, add_up, dim3(1), kScanThreads, shared_bytes_of<int>(kScanThreads), sums,
           static_cast<int>(kDigits * tiles));
    launch(stream, move_keys, dim3(tiles), kThreads,
           shared_bytes_of<int>(kDigits) + shared_bytes_of<int>(kWarps * kDigits), pass);
    if (from.places == nullptr) from.places = spare;
    std::swap(from, to);
    shift += 8;
  } while (largest >> shift != 0);
  return from;
}

}  // namespace tessera::gpu
