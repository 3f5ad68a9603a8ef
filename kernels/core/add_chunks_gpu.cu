#include "kernels/core/add_chunks.h"
#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"

namespace tessera::gpu {
namespace {

/// A warp's worth of columns per block. Warp w adds chunks w, w + 32, ...; then the warps' sums are
/// added in order.
constexpr int kThreads = kWarpSize * kWarpSize;
__global__ void __launch_bounds__(kThreads)
    add_columns(float* sums, const float* parts, int64_t count, int chunks) {
  SharedMemory shared;
  float* const of_warps = shared.take<float>(kThreads);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t i = int64_t{blockIdx.x} * kWarpSize + lane;
  float sum = 0;
  for (int chunk = warp; chunk < chunks && i < count; chunk += kWarpSize) {
    sum += parts[int64_t{chunk} * count + i];
  }
  of_warps[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || i >= count) return;
  for (int other = 1; other < kWarpSize; ++other) sum += of_warps[other * kWarpSize + lane];
  sums[i] += sum;
}

}  // namespace

void add_chunks(Stream& stream, float* sums, const float* parts, int64_t count, int64_t chunks) {
  launch(stream, add_columns, dim3(blocks_for(count, kWarpSize)), kThreads,
         shared_bytes_of<float>(kThreads), sums, parts, count, static_cast<int>(chunks));
}

}  // namespace tessera::gpu
