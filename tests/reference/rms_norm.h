#pragma once

#include <cmath>
#include <complex>
#include <vector>

namespace tessera::reference {

/// y of kernels/rms_norm.h, for h [tokens, dim].
template <class T>
std::vector<T> rms_norm(const std::vector<T>& h, const std::vector<T>& weight, double epsilon) {
  const size_t dim = weight.size();
  std::vector<T> y(h.size());
  for (size_t row = 0; row < h.size(); row += dim) {
    T mean = 0;
    for (size_t d = 0; d < dim; ++d) mean += h[row + d] * h[row + d] / static_cast<double>(dim);
    const T length = std::sqrt(mean + epsilon);
    for (size_t d = 0; d < dim; ++d) y[row + d] = h[row + d] / length * weight[d];
  }
  return y;
}

}  // namespace tessera::reference
