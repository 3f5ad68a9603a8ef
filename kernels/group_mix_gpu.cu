#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/group_mix.h"

// A warp has the heads of one group of one token, which lie side by side: everything is read once
// and written once, and the sum of a slope is the warp's.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

/// What this warp has. Blocks are [tokens / kWarps, groups].
struct WarpPlace {
  int64_t token;
  int64_t first;  // element of the group's heads
};
__device__ WarpPlace warp_place(int64_t row, int width) {
  const int64_t token = int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
  return {token, token * row + int64_t{blockIdx.y} * width};
}

template <class T>
struct Mix {
  T* y;
  const T* a;
  const T* b;
  const float* shares;
  int64_t tokens;
  int64_t row;  // elements of a token
  int width;    // of a group
};

template <class T>
__global__ void __launch_bounds__(kThreads) mix(Mix<T> m) {
  const WarpPlace at = warp_place(m.row, m.width);
  if (at.token >= m.tokens) return;
  const float w = m.shares[blockIdx.y];
  for (int i = static_cast<int>(threadIdx.x) % kWarpSize; i < m.width; i += kWarpSize) {
    const int64_t j = at.first + i;
    m.y[j] = from_float<T>(w * to_float(m.a[j]) + (1 - w) * to_float(m.b[j]));
  }
}

template <class T>
struct MixBackward {
  T* da;
  T* db;
  float* slopes;
  const T* dy;
  const T* a;
  const T* b;
  const float* shares;
  int64_t tokens;
  int64_t row;
  int width;
};

template <class T>
__global__ void __launch_bounds__(kThreads) mix_backward(MixBackward<T> m) {
  const WarpPlace at = warp_place(m.row, m.width);
  if (at.token >= m.tokens) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const float w = m.shares[blockIdx.y];
  float slope = 0;
  for (int i = lane; i < m.width; i += kWarpSize) {
    const int64_t j = at.first + i;
    const float d = to_float(m.dy[j]);
    slope += d * (to_float(m.a[j]) - to_float(m.b[j]));
    m.da[j] = from_float<T>(w * d);
    m.db[j] = from_float<T>((1 - w) * d);
  }
  slope = warp_sum(slope);
  if (lane == 0) m.slopes[int64_t{blockIdx.y} * m.tokens + at.token] = slope;
}

dim3 grid_of(int64_t tokens, int64_t groups) {
  return {blocks_for(tokens, kWarps), static_cast<unsigned>(groups)};
}

}  // namespace

void mix_groups(Stream& stream, const MixGroups& a) {
  const Shape& shape = a.y.shape();
  const int64_t row = shape[1] * shape[2];
  const int64_t groups = a.shares.shape()[0];
  with_float_type(a.y.dtype(), [&]<class T>() {
    const Mix<T> of{a.y.as<T>().data(),
                    a.a.as<T>().data(),
                    a.b.as<T>().data(),
                    a.shares.as<float>().data(),
                    shape[0],
                    row,
                    static_cast<int>(row / groups)};
    launch(stream, mix<T>, grid_of(shape[0], groups), kThreads, 0, of);
  });
}

void mix_groups_backward(Stream& stream, const MixGroupsBackward& a) {
  const Shape& shape = a.dy.shape();
  const int64_t row = shape[1] * shape[2];
  const int64_t groups = a.shares.shape()[0];
  with_float_type(a.dy.dtype(), [&]<class T>() {
    const MixBackward<T> of{a.da.as<T>().data(),
                            a.db.as<T>().data(),
                            a.slopes.as<float>().data(),
                            a.dy.as<T>().data(),
                            a.a.as<T>().data(),
                            a.b.as<T>().data(),
                            a.shares.as<float>().data(),
                            shape[0],
                            row,
                            static_cast<int>(row / groups)};
    launch(stream, mix_backward<T>, grid_of(shape[0], groups), kThreads, 0, of);
  });
}

}  // namespace tessera::gpu
