#include "kernels/core/fast_math.h"
#include "kernels/core/grain.h"
#include "kernels/core/simd.h"
#include "kernels/swiglu.h"

namespace tessera::cpu {

namespace {

/// The pointers of one row of backward.
template <class T>
struct BackwardRow {
  T* dgate_up;
  T* y;  // or null
  const T* dy;
  const T* gate_up;
};

/// Returns sum_j a[j] dy[j].
template <class T>
float backward_row(const BackwardRow<T>& row, float weight, int64_t dim) {
  F32x16 dots{};
  for_lanes(dim, [&](int64_t j, int64_t lanes) {
    const F32x16 g = load_first(row.gate_up + j, lanes);
    const F32x16 u = load_first(row.gate_up + dim + j, lanes);
    const F32x16 dy = load_first(row.dy + j, lanes);
    const F32x16 s = fast_sigmoid(g);
    const F32x16 silu = g * s;
    const F32x16 da = dy * weight;
    dots += silu * u * dy;
    store_first(row.dgate_up + j, da * u * (s + silu * (1.0f - s)), lanes);
    store_first(row.dgate_up + dim + j, da * silu, lanes);
    if (row.y != nullptr) store_first(row.y + j, silu * u * weight, lanes);
  });
  return sum(dots);
}

}  // namespace

void swiglu_forward(ThreadPool& threads, const SwigluForward& a) {
  const int64_t rows = a.y.shape()[0];
  const int64_t dim = a.y.shape()[1];
  with_float_type(a.y.dtype(), [&]<class T>() {
    const T* const gate_up = a.gate_up.as<T>().data();
    T* const y = a.y.as<T>().data();
    const float* const weights = a.row_weight.empty() ? nullptr : a.row_weight.as<float>().data();
    threads.for_ranges(rows, row_grain(dim), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const float weight = weights == nullptr ? 1 : weights[r];
        const T* const row = gate_up + r * 2 * dim;
        for_lanes(dim, [&](int64_t j, int64_t lanes) {
          const F32x16 g = load_first(row + j, lanes);
          const F32x16 silu = g * fast_sigmoid(g);
          store_first(y + r * dim + j, silu * load_first(row + dim + j, lanes) * weight, lanes);
        });
      }
    });
  });
}

void swiglu_backward(ThreadPool& threads, const SwigluBackward& a) {
  const int64_t rows = a.dy.shape()[0];
  const int64_t dim = a.dy.shape()[1];
  with_float_type(a.dy.dtype(), [&]<class T>() {
    const T* const gate_up = a.gate_up.as<T>().data();
    const T* const dy = a.dy.as<T>().data();
    T* const dgate_up = a.dgate_up.as<T>().data();
    T* const y = a.y.empty() ? nullptr : a.y.as<T>().data();
    const bool weighted = !a.row_weight.empty();
    const float* const weights = weighted ? a.row_weight.as<float>().data() : nullptr;
    float* const dweights = weighted ? a.drow_weight.as<float>().data() : nullptr;
    threads.for_ranges(rows, row_grain(dim), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        T* const again = y == nullptr ? nullptr : y + r * dim;
        const float dot =
            backward_row<T>({dgate_up + r * 2 * dim, again, dy + r * dim, gate_up + r * 2 * dim},
                            weighted ? weights[r] : 1, dim);
        if (weighted) dweights[r] = dot;
      }
    });
  });
}

}  // namespace tessera::cpu
