#include "kernels/core/pointwise.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/swiglu.h"

// Forward reads gate_up and writes y: 6 bytes per element of y in bf16. Backward reads dy and
// gate_up and writes dgate_up and y: 12. Each once; a block has a whole row of backward, whose
// dot product is drow_weight.

namespace tessera::gpu {
namespace {

template <class T>
struct Forward {
  T* y;
  const T* gate_up;
  const float* row_weight;  // may be null
  int64_t dim;
  RowSplit split;
};

template <class T, int N>
__global__ void __launch_bounds__(kMapThreads) forward_rows(Forward<T> a) {
  const RowPlace at = place_in(a.split);
  if (at.item < 0) return;
  const int64_t j = int64_t{at.item} * N;
  const T* const row = a.gate_up + at.row * 2 * a.dim;
  const Floats<N> g = load_floats<N>(row + j);
  Floats<N> u = load_floats<N>(row + a.dim + j);
  const float weight = a.row_weight == nullptr ? 1.0f : a.row_weight[at.row];
  for (int i = 0; i < N; ++i) u.at[i] *= g.at[i] * device_sigmoid(g.at[i]) * weight;
  store_floats(a.y + at.row * a.dim + j, u);
}

template <class T>
struct Backward {
  T* dgate_up;
  T* y;  // may be null
  const T* dy;
  const T* gate_up;
  const float* row_weight;  // may be null
  float* drow_weight;       // null with it
  int dim;
};

/// A block per row of any whole number of warps.
template <class T, int N>
__global__ void __launch_bounds__(kMapThreads) backward_row(Backward<T> a) {
  SharedMemory shared;
  float* const scratch = shared.take<float>(kWarpSize);
  const int64_t row = blockIdx.x;
  const T* const gate_up = a.gate_up + row * 2 * a.dim;
  T* const dgate_up = a.dgate_up + row * 2 * a.dim;
  const float weight = a.row_weight == nullptr ? 1.0f : a.row_weight[row];
  float dot = 0;
  const int step = static_cast<int>(blockDim.x) * N;
  for (int j = static_cast<int>(threadIdx.x) * N; j < a.dim; j += step) {
    const Floats<N> g = load_floats<N>(gate_up + j);
    const Floats<N> u = load_floats<N>(gate_up + a.dim + j);
    const Floats<N> dy = load_floats<N>(a.dy + row * a.dim + j);
    Floats<N> dg;
    Floats<N> du;
    Floats<N> y;
    for (int i = 0; i < N; ++i) {
      const float s = device_sigmoid(g.at[i]);
      const float silu = g.at[i] * s;
      const float da = dy.at[i] * weight;
      dot += silu * u.at[i] * dy.at[i];
      dg.at[i] = da * u.at[i] * (s + silu * (1.0f - s));
      du.at[i] = da * silu;
      y.at[i] = silu * u.at[i] * weight;
    }
    store_floats(dgate_up + j, dg);
    store_floats(dgate_up + a.dim + j, du);
    if (a.y != nullptr) store_floats(a.y + row * a.dim + j, y);
  }
  if (a.drow_weight == nullptr) return;
  dot = block_sum(dot, scratch);
  if (threadIdx.x == 0) a.drow_weight[row] = dot;
}

const float* weights_or_null(const ConstTensorView& x) {
  return x.empty() ? nullptr : x.as<float>().data();
}

/// As many lanes as a row has groups, in whole warps.
int threads_for(int64_t groups) {
  const int64_t lanes = (groups + kWarpSize - 1) / kWarpSize * kWarpSize;
  return static_cast<int>(std::clamp<int64_t>(lanes, kWarpSize, kMapThreads));
}

}  // namespace

void swiglu_forward(Stream& stream, const SwigluForward& a) {
  const int64_t rows = a.y.shape()[0];
  const int64_t dim = a.y.shape()[1];
  with_float_type(a.y.dtype(), [&]<class T>() {
    constexpr int kN = kGroup<T>;
    Forward<T> of{a.y.as<T>().data(), a.gate_up.as<T>().data(), weights_or_null(a.row_weight), dim,
                  RowSplit(rows, dim)};
    const bool packed = in_packs(of.y, dim) && in_packs(of.gate_up, dim);
    if (packed) of.split = RowSplit(rows, dim / kN);
    launch(stream, packed ? forward_rows<T, kN> : forward_rows<T, 1>, of.split.grid(), kMapThreads,
           0, of);
  });
}

void swiglu_backward(Stream& stream, const SwigluBackward& a) {
  const int64_t rows = a.dy.shape()[0];
  const int64_t dim = a.dy.shape()[1];
  with_float_type(a.dy.dtype(), [&]<class T>() {
    constexpr int kN = kGroup<T>;
    const Backward<T> of{
        .dgate_up = a.dgate_up.as<T>().data(),
        .y = a.y.empty() ? nullptr : a.y.as<T>().data(),
        .dy = a.dy.as<T>().data(),
        .gate_up = a.gate_up.as<T>().data(),
        .row_weight = weights_or_null(a.row_weight),
        .drow_weight = a.row_weight.empty() ? nullptr : a.drow_weight.as<float>().data(),
        .dim = static_cast<int>(dim)};
    const bool packed = in_packs(of.dgate_up, dim) && in_packs(of.y, dim) && in_packs(of.dy, dim) &&
                        in_packs(of.gate_up, dim);
    launch(stream, packed ? backward_row<T, kN> : backward_row<T, 1>,
           dim3(static_cast<unsigned>(rows)), threads_for(packed ? dim / kN : dim),
           shared_bytes_of<float>(kWarpSize), of);
  });
}

}  // namespace tessera::gpu
