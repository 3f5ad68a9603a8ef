#pragma once

#include <cmath>
#include <vector>

namespace tessera::reference {

/// x [tokens, heads, d] after kernels/rope.h, as a rotation of complex numbers.
template <class T>
std::vector<T> rope(const std::vector<T>& x, const std::vector<double>& positions, size_t heads,
                    double base) {
  const size_t d = x.size() / positions.size() / heads;
  std::vector<T> y(x.size());
  for (size_t row = 0; row < positions.size() * heads; ++row) {
    for (size_t i = 0; i < d / 2; ++i) {
      const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(d);
      const double angle = positions[row / heads] * std::pow(base, exponent);
      const T real = x[row * d + i];
      const T imaginary = x[row * d + d / 2 + i];
      y[row * d + i] = real * std::cos(angle) - imaginary * std::sin(angle);
      y[row * d + d / 2 + i] = real * std::sin(angle) + imaginary * std::cos(angle);
    }
  }
  return y;
}

}  // namespace tessera::reference
