#include "kernels/core/launch.cuh"
#include "kernels/softplus.h"

// A handful of numbers, one per group: exact functions, no thought of speed.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) forward(float* y, const float* x, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) y[i] = fmaxf(x[i], 0.0f) + log1pf(expf(-fabsf(x[i])));
}

__global__ void __launch_bounds__(kThreads)
    backward(float* dx, const float* dy, const float* x, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) dx[i] += dy[i] / (1 + expf(-x[i]));
}

}  // namespace

void softplus_forward(Stream& stream, const SoftplusForward& a) {
  launch(stream, forward, dim3(blocks_for(a.x.elements(), kThreads)), kThreads, 0,
         a.y.as<float>().data(), a.x.as<float>().data(), a.x.elements());
}

void softplus_backward(Stream& stream, const SoftplusBackward& a) {
  launch(stream, backward, dim3(blocks_for(a.x.elements(), kThreads)), kThreads, 0,
         a.dx.as<float>().data(), a.dy.as<float>().data(), a.x.as<float>().data(), a.x.elements());
}

}  // namespace tessera::gpu
