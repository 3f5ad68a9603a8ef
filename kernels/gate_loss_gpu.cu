#include <algorithm>

#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/gate_loss.h"

// A warp per token, a lane per slot; bound by reading block_lse [g, k], from memory once and then
// from the L1 cache. The target is kept where its gradient goes, in the lane's own slots of
// dscores. Losses are summed over a fixed number of tokens per block and then over the blocks in
// their order, in double, as on the CPU.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRowsPerBlock = 256;
constexpr int kLosses = 3;

/// (kl, entropy, z), as numbers or where to read them.
struct Coefficients {
  const float* from;  // null: the numbers
  float numbers[kLosses];

  __device__ float at(int loss) const { return from == nullptr ? numbers[loss] : from[loss]; }
};

struct Loss {
  float* dscores;          // [rows, kept + 1]
  double* partials;        // [blocks, 3]
  const float* scores;     // [rows, kept + 1]
  const int32_t* counts;   // [rows]
  const float* block_lse;  // [rows, heads, kept]
  Coefficients coefficients;
  int64_t rows;
  int heads;
  int kept;
};

/// exp(x - highest) sums to `total` over the row.
struct Softmax {
  float highest;
  float total;
};
__device__ Softmax softmax(const float* x, int count, int lane) {
  float highest = x[0];
  for (int s = lane; s < count; s += kWarpSize) highest = fmaxf(highest, x[s]);
  highest = warp_max(highest);
  float total = 0;
  for (int s = lane; s < count; s += kWarpSize) total += expf(x[s] - highest);
  return {highest, warp_sum(total)};
}

/// Writes dz and adds (kl, entropy, z) without their coefficients.
__device__ void row_loss(const Loss& a, int64_t row, int count, int lane, double (&sums)[kLosses]) {
  const float* const z = a.scores + row * (a.kept + 1);
  float* const dz = a.dscores + row * (a.kept + 1);
  for (int h = 0; h < a.heads; ++h) {
    const float* const x = a.block_lse + (row * a.heads + h) * a.kept;
    const Softmax of_head = softmax(x, count, lane);
    const float share = __fdividef(1, of_head.total * static_cast<float>(a.heads));
    for (int s = lane; s < count; s += kWarpSize) {
      dz[s] = (h == 0 ? 0.0f : dz[s]) + expf(x[s] - of_head.highest) * share;
    }
  }
  const Softmax of_scores = softmax(z, count, lane);
  const float lse = of_scores.highest + logf(of_scores.total);
  const float inverse = __fdividef(1, of_scores.total);
  float entropy = 0;
  float kl = 0;
  for (int s = lane; s < count; s += kWarpSize) {
    const float log_p = z[s] - lse;
    const float target = dz[s];
    entropy -= expf(z[s] - of_scores.highest) * inverse * log_p;
    // 0 log 0 = 0; a denormal number counts as 0.
    if (target >= 1e-37f) kl += target * (logf(target) - log_p);
  }
  entropy = warp_sum(entropy);
  kl = warp_sum(kl);
  const float of_kl = a.coefficients.at(0);
  const float of_entropy = a.coefficients.at(1);
  const float of_z = a.coefficients.at(2);
  for (int s = lane; s < count; s += kWarpSize) {
    const float p = expf(z[s] - of_scores.highest) * inverse;
    dz[s] = of_kl * (p - dz[s]) - of_entropy * p * (z[s] - lse + entropy) + 2 * of_z * lse * p;
  }
  sums[0] += static_cast<double>(kl);
  sums[1] += static_cast<double>(entropy);
  sums[2] += static_cast<double>(lse) * static_cast<double>(lse);
}

__global__ void __launch_bounds__(kThreads) loss_rows(Loss a) {
  SharedMemory shared;
  double* const of_warps = shared.take<double>(kWarps * kLosses);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t begin = int64_t{blockIdx.x} * kRowsPerBlock;
  const int64_t end = std::min(a.rows, begin + kRowsPerBlock);
  double sums[kLosses] = {};
  for (int64_t row = begin + warp; row < end; row += kWarps) {
    const int count = std::min(a.counts[row], a.kept);
    const int used = count < 2 ? 0 : count;
    for (int s = used + lane; s <= a.kept; s += kWarpSize) {
      a.dscores[row * (a.kept + 1) + s] = 0;
    }
    if (used > 0) row_loss(a, row, count, lane, sums);
  }
  if (lane == 0) {
    for (int i = 0; i < kLosses; ++i) of_warps[warp * kLosses + i] = sums[i];
  }
  __syncthreads();
  const int loss = static_cast<int>(threadIdx.x);
  if (loss >= kLosses) return;
  double total = 0;
  for (int i = 0; i < kWarps; ++i) total += of_warps[i * kLosses + loss];
  a.partials[int64_t{blockIdx.x} * kLosses + loss] = total;
}

/// A warp per loss.
__global__ void add_partials(float* losses, const double* partials, int blocks,
                             Coefficients coefficients) {
  const int loss = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  double total = 0;
  for (int i = lane; i < blocks; i += kWarpSize) total += partials[int64_t{i} * kLosses + loss];
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    total += __shfl_xor_sync(kWholeWarp, total, bits);
  }
  if (lane != 0) return;
  losses[loss] += static_cast<float>(total * static_cast<double>(coefficients.at(loss)));
}

}  // namespace

void gate_loss(Stream& stream, const GateLoss& a) {
  const int64_t rows = a.selection.counts.elements();
  if (rows == 0) return;
  const unsigned blocks = blocks_for(rows, kRowsPerBlock);
  double* const partials = Workspace(stream, "gate_loss").take<double>(int64_t{blocks} * kLosses);
  const Coefficients coefficients{
      .from = a.coefficients.empty() ? nullptr : a.coefficients.as<float>().data(),
      .numbers = {a.kl_coefficient, a.entropy_coefficient, a.z_coefficient}};
  launch(stream, loss_rows, dim3(blocks), kThreads, shared_bytes_of<double>(kWarps * kLosses),
         Loss{.dscores = a.dscores.as<float>().data(),
              .partials = partials,
              .scores = a.selection.scores.as<float>().data(),
              .counts = a.selection.counts.as<int32_t>().data(),
              .block_lse = a.block_lse.as<float>().data(),
              .coefficients = coefficients,
              .rows = rows,
              .heads = static_cast<int>(a.block_lse.shape()[2]),
              .kept = static_cast<int>(a.selection.kept())});
  launch(stream, add_partials, dim3(1), kLosses * kWarpSize, 0, a.losses.as<float>().data(),
         partials, static_cast<int>(blocks), coefficients);
}

}  // namespace tessera::gpu
