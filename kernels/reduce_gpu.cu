#include <algorithm>

#include "kernels/core/pointwise.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/reduce.h"

// x is read once, four packs of each lane under way at a time. Blocks sum fixed chunks, which
// depend on the count alone; one block adds the chunks up. Doubles all the way, also for counting:
// whole numbers are exact in them.

namespace tessera::gpu {
namespace {

constexpr int64_t kMostChunks = 4096;
constexpr int64_t kLeastChunk = 8192;

enum class Term : uint8_t { kValue, kSquare, kNonFinite };

template <Term kTerm>
__device__ double term(float x) {
  if constexpr (kTerm == Term::kValue) return x;
  if constexpr (kTerm == Term::kSquare) return double{x} * double{x};
  constexpr uint32_t kExponent = 0x7F800000;  // all ones in infinities and NaNs
  return (__float_as_uint(x) & kExponent) == kExponent ? 1 : 0;
}

/// Sum over the block, in every lane of its first warp. `scratch` [32] is shared memory.
__device__ double block_total(double value, double* scratch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, bits);
  }
  if (lane == 0) scratch[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  value = lane < kMapThreads / kWarpSize ? scratch[lane] : 0;
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, bits);
  }
  return value;
}

template <class T, Term kTerm>
__global__ void __launch_bounds__(kMapThreads)
    sum_chunks(double* parts, const T* x, int64_t count, int64_t chunk, bool packed) {
  constexpr int kN = kGroup<T>;
  constexpr int kAhead = 4;
  constexpr int64_t kStep = kMapThreads * kN;
  SharedMemory shared;
  double* const scratch = shared.take<double>(kWarpSize);
  const int64_t begin = int64_t{blockIdx.x} * chunk;
  const int64_t end = begin + chunk < count ? begin + chunk : count;
  double sums[2] = {0, 0};
  int64_t i = begin + static_cast<int64_t>(threadIdx.x) * kN;
  if (packed) {
    for (; i + (kAhead - 1) * kStep + kN <= end; i += kAhead * kStep) {
      Floats<kN> ahead[kAhead];
      for (int k = 0; k < kAhead; ++k) ahead[k] = load_floats<kN>(x + i + k * kStep);
      for (int k = 0; k < kAhead; ++k) {
        for (int j = 0; j < kN; ++j) sums[j % 2] += term<kTerm>(ahead[k].at[j]);
      }
    }
  }
  for (; i < end; i += kStep) {
    for (int64_t j = i; j < i + kN && j < end; ++j) sums[0] += term<kTerm>(to_float(x[j]));
  }
  const double total = block_total(sums[0] + sums[1], scratch);
  if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kMapThreads)
    add_parts(double* total, const double* parts, int count) {
  SharedMemory shared;
  double* const scratch = shared.take<double>(kWarpSize);
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kMapThreads) sum += parts[i];
  sum = block_total(sum, scratch);
  if (threadIdx.x == 0) *total += sum;
}

template <Term kTerm>
void add_reduced(Stream& stream, double* total, const ConstTensorView& x, Workspace& workspace) {
  const int64_t count = x.elements();
  if (count == 0) return;
  // A chunk is whole packs, so that all begin at one.
  const int64_t wanted = std::max(kLeastChunk, (count + kMostChunks - 1) / kMostChunks);
  const int64_t chunk = (wanted + 7) / 8 * 8;
  const unsigned chunks = blocks_for(count, chunk);
  auto* const parts = workspace.take<double>(chunks);
  const int64_t shared = shared_bytes_of<double>(kWarpSize);
  with_float_type(x.dtype(), [&]<class T>() {
    const T* const from = x.as<T>().data();
    launch(stream, sum_chunks<T, kTerm>, dim3(chunks), kMapThreads, shared, parts, from, count,
           chunk, aligned_to_packs(from));
  });
  launch(stream, add_parts, dim3(1), kMapThreads, shared, total, parts, static_cast<int>(chunks));
}

}  // namespace

void add_sum(Stream& stream, const AddSum& a) {
  Workspace workspace(stream, "add_sum");
  add_reduced<Term::kValue>(stream, a.total.as<double>().data(), a.x, workspace);
}

void add_sum_of_squares(Stream& stream, const AddSum& a) {
  Workspace workspace(stream, "add_sum_of_squares");
  add_reduced<Term::kSquare>(stream, a.total.as<double>().data(), a.x, workspace);
}

int64_t count_non_finite(Stream& stream, const ConstTensorView& x) {
  Workspace workspace(stream, "count_non_finite");
  auto* const total = workspace.take<double>(1);
  const auto handle = static_cast<cudaStream_t>(stream.handle());
  CUDA_CHECK(cudaMemsetAsync(total, 0, sizeof(double), handle));
  add_reduced<Term::kNonFinite>(stream, total, x, workspace);
  double result = 0;
  CUDA_CHECK(cudaMemcpyAsync(&result, total, sizeof(result), cudaMemcpyDeviceToHost, handle));
  stream.synchronize();
  return static_cast<int64_t>(result);
}

}  // namespace tessera::gpu
