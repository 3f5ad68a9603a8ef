#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/core/grain.h"
#include "kernels/core/simd.h"
#include "kernels/rms_norm.h"

// One pass over memory each way: a row is read twice, but the second time from the first cache.

namespace tessera::cpu {

namespace {

/// h = x + residual, rounded to T (where h is given), and sum_d h[d]^2.
template <class T>
float square_sum(const T* x, const T* residual, T* h, int64_t dim) {
  F32x16 squares{};
  for_lanes(dim, [&](int64_t d, int64_t lanes) {
    F32x16 value = load_first(x + d, lanes);
    if (residual != nullptr) value += load_first(residual + d, lanes);
    if (h != nullptr) {
      store_first(h + d, value, lanes);
      value = load_first(h + d, lanes);
    }
    squares += value * value;
  });
  return sum(squares);
}

template <class T>
void normalise(T* y, const T* h, const T* weight, float rstd, int64_t dim) {
  for_lanes(dim, [&](int64_t d, int64_t lanes) {
    const F32x16 scaled = load_first(h + d, lanes) * rstd;
    store_first(y + d, scaled * load_first(weight + d, lanes), lanes);
  });
}

/// The pointers of one row of backward.
template <class T>
struct BackwardRow {
  T* dh;
  const T* dy;
  const T* h;
  const T* dresidual;  // or null
};

// With n = h rstd: dh = rstd (dy weight - n mean(dy weight n)), dweight = dy n.
template <class T>
void backward_row(const BackwardRow<T>& row, const T* weight, float rstd, float* dweight,
                  int64_t dim) {
  F32x16 dots{};
  for_lanes(dim, [&](int64_t d, int64_t lanes) {
    const F32x16 dyh = load_first(row.dy + d, lanes) * load_first(row.h + d, lanes);
    store_first(dweight + d, load_first(dweight + d, lanes) + dyh * rstd, lanes);
    dots += dyh * load_first(weight + d, lanes);
  });
  const float k = sum(dots) * rstd * rstd * rstd / static_cast<float>(dim);
  for_lanes(dim, [&](int64_t d, int64_t lanes) {
    const F32x16 dn = load_first(row.dy + d, lanes) * load_first(weight + d, lanes);
    F32x16 dh = dn * rstd - load_first(row.h + d, lanes) * k;
    if (row.dresidual != nullptr) dh += load_first(row.dresidual + d, lanes);
    store_first(row.dh + d, dh, lanes);
  });
}

}  // namespace

void rms_norm_forward(ThreadPool& threads, const RmsNormForward& a) {
  const int64_t tokens = a.x.shape()[0];
  const int64_t dim = a.x.shape()[1];
  with_float_type(a.x.dtype(), [&]<class T>() {
    const T* const x = a.x.as<T>().data();
    const T* const weight = a.weight.as<T>().data();
    const T* const residual = a.residual.empty() ? nullptr : a.residual.as<T>().data();
    T* const h = a.h.empty() ? nullptr : a.h.as<T>().data();
    T* const y = a.y.as<T>().data();
    float* const rstd = a.rstd.as<float>().data();
    const float epsilon = a.epsilon;
    threads.for_ranges(tokens, row_grain(dim), [=](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t row = t * dim;
        const T* const add = residual == nullptr ? nullptr : residual + row;
        T* const keep = h == nullptr ? nullptr : h + row;
        const float squares = square_sum(x + row, add, keep, dim);
        rstd[t] = 1 / std::sqrt(squares / static_cast<float>(dim) + epsilon);
        normalise(y + row, h == nullptr ? x + row : h + row, weight, rstd[t], dim);
      }
    });
  });
}

void rms_norm_backward(ThreadPool& threads, const RmsNormBackward& a) {
  const int64_t tokens = a.h.shape()[0];
  const int64_t dim = a.h.shape()[1];
  if (tokens == 0 || dim == 0) return;
  // Weight gradients of a fixed number of chunks of rows, on this stack, then added in order.
  constexpr int64_t kMaxChunks = 32;
  std::array<float, kRmsNormMaxDim> partial;
  const int64_t chunks = std::min({kMaxChunks, kRmsNormMaxDim / dim, tokens});
  with_float_type(a.h.dtype(), [&]<class T>() {
    const T* const dy = a.dy.as<T>().data();
    const T* const h = a.h.as<T>().data();
    const T* const weight = a.weight.as<T>().data();
    const T* const dresidual = a.dresidual.empty() ? nullptr : a.dresidual.as<T>().data();
    const float* const rstd = a.rstd.as<float>().data();
    T* const dh = a.dh.as<T>().data();
    float* const partials = partial.data();
    threads.for_each(chunks, [=](int64_t chunk) {
      float* const sums = partials + chunk * dim;
      std::fill(sums, sums + dim, 0.0f);
      const int64_t end = (chunk + 1) * tokens / chunks;
      for (int64_t t = chunk * tokens / chunks; t < end; ++t) {
        const int64_t at = t * dim;
        const T* const add = dresidual == nullptr ? nullptr : dresidual + at;
        backward_row<T>({dh + at, dy + at, h + at, add}, weight, rstd[t], sums, dim);
      }
    });
  });
  const auto dweight = a.dweight.as<float>();
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const float* const sums = partial.data() + chunk * dim;
    for (int64_t d = 0; d < dim; ++d) dweight[static_cast<size_t>(d)] += sums[d];
  }
}

}  // namespace tessera::cpu
