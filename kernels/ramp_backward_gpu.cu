#include <algorithm>

#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/gate_backward.h"

// A warp per token, a lane per slot: reads scores and dlog_gate once, reads and writes dscores.
// The gradient of a width is summed over a fixed number of tokens per block and then over the
// blocks in their order, in double, as on the CPU.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kTokensPerBlock = 256;

struct Ramp {
  float* dscores;          // [groups, tokens, kept + 1]
  double* partials;        // [groups, blocks]
  const float* dlog_gate;  // [groups, tokens, kept]
  const int32_t* blocks;
  const float* scores;
  const int32_t* counts;
  const float* widths;
  float strength;
  int tokens;
  int kept;
};

/// One token: adds to its dscores; returns its part of -sum du u, the gradient in log(width), in
/// every lane.
__device__ float row_backward(const Ramp& a, int64_t row, float width, int lane) {
  const float* const z = a.scores + row * (a.kept + 1);
  float* const dz = a.dscores + row * (a.kept + 1);
  const float runner_up = z[a.kept];
  const int count = std::min(a.counts[row], a.kept);
  float to_runner_up = 0;
  float to_width = 0;
  for (int s = lane; s < count; s += kWarpSize) {
    const float u = (z[s] - runner_up) / width;
    if (!(u > 0 && u < 1)) continue;
    const float gate = 1 - a.strength + a.strength * u;
    const float du = a.strength * a.dlog_gate[row * a.kept + s] / gate;
    dz[s] += du / width;
    to_runner_up -= du / width;
    to_width -= du * u;
  }
  to_runner_up = warp_sum(to_runner_up);
  if (lane == 0) dz[a.kept] += to_runner_up;
  return warp_sum(to_width);
}

__global__ void __launch_bounds__(kThreads) ramp_tokens(Ramp a) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kWarps);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int group = static_cast<int>(blockIdx.y);
  const int begin = static_cast<int>(blockIdx.x) * kTokensPerBlock;
  const int end = std::min(a.tokens, begin + kTokensPerBlock);
  double total = 0;
  for (int t = begin + warp; t < end; t += kWarps) {
    const int64_t row = int64_t{group} * a.tokens + t;
    if (a.blocks[row * (a.kept + 1) + a.kept] < 0) continue;  // nothing was dropped
    total += static_cast<double>(row_backward(a, row, a.widths[group], lane));
  }
  if (lane == 0) sums[warp] = total;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kWarps; ++i) total += sums[i];
  a.partials[int64_t{group} * gridDim.x + blockIdx.x] = total;
}

/// A warp per group.
__global__ void add_partials(float* dwidths, const double* partials, const float* widths,
                             int count) {
  const int group = static_cast<int>(blockIdx.x);
  double total = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kWarpSize) {
    total += partials[int64_t{group} * count + i];
  }
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    total += __shfl_xor_sync(kWholeWarp, total, bits);
  }
  if (threadIdx.x == 0) {
    dwidths[group] += static_cast<float>(total / static_cast<double>(widths[group]));
  }
}

}  // namespace

void ramp_backward(Stream& stream, const RampBackward& a) {
  const int64_t groups = a.selection.counts.shape()[0];
  const int64_t tokens = a.selection.counts.shape()[1];
  if (groups == 0 || tokens == 0) return;
  const unsigned blocks = blocks_for(tokens, kTokensPerBlock);
  double* const partials = Workspace(stream, "ramp_backward").take<double>(groups * blocks);
  const float* const widths = a.ramp.widths.as<float>().data();
  launch(stream, ramp_tokens, dim3(blocks, static_cast<unsigned>(groups)), kThreads,
         shared_bytes_of<double>(kWarps),
         Ramp{.dscores = a.dscores.as<float>().data(),
              .partials = partials,
              .dlog_gate = a.dlog_gate.as<float>().data(),
              .blocks = a.selection.blocks.as<int32_t>().data(),
              .scores = a.selection.scores.as<float>().data(),
              .counts = a.selection.counts.as<int32_t>().data(),
              .widths = widths,
              .strength = a.ramp.strength,
              .tokens = static_cast<int>(tokens),
              .kept = static_cast<int>(a.selection.kept())});
  launch(stream, add_partials, dim3(static_cast<unsigned>(groups)), kWarpSize, 0,
         a.dwidths.as<float>().data(), partials, widths, static_cast<int>(blocks));
}

}  // namespace tessera::gpu
