#pragma once

#include <cstdint>
#include <vector>

namespace tessera::reference {

/// c[m, n] = op(a) op(b) of kernels/matmul.h, in T = double or Complex.
template <class T>
std::vector<T> matmul(const std::vector<T>& a, const std::vector<T>& b, int64_t m, int64_t n,
                      int64_t k, bool transpose_a = false, bool transpose_b = false) {
  std::vector<T> c(static_cast<size_t>(m * n), T(0));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t p = 0; p < k; ++p) {
        const int64_t at_a = transpose_a ? p * m + i : i * k + p;
        const int64_t at_b = transpose_b ? j * k + p : p * n + j;
        c[static_cast<size_t>(i * n + j)] +=
            a[static_cast<size_t>(at_a)] * b[static_cast<size_t>(at_b)];
      }
    }
  }
  return c;
}

}  // namespace tessera::reference
