#pragma once

#include <complex>
#include <span>
#include <vector>

namespace tessera::reference {

using Complex = std::complex<double>;

/// The gradient at `at` of a real function, evaluated on complex numbers: f'(x) = Im f(x + ih) / h.
/// Nothing is subtracted, so h may be tiny and the result has full double precision.
/// `f` takes std::vector<Complex> and returns Complex; it must be analytic: comparisons on real
/// parts only (a subtracted maximum and a mask are constants), and no abs.
/// Source: Squire & Trapp 1998, SIAM Review 40(1).
template <class F>
std::vector<double> complex_step_gradient(std::span<const double> at, F&& f) {
  constexpr double kStep = 1e-50;
  std::vector<Complex> x(at.begin(), at.end());
  std::vector<double> gradient(at.size());
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = {at[i], kStep};
    gradient[i] = f(static_cast<const std::vector<Complex>&>(x)).imag() / kStep;
    x[i] = at[i];
  }
  return gradient;
}

/// The numbers as T, for references that are templates in T = double or Complex.
template <class T>
std::vector<T> as(std::span<const double> values) {
  return {values.begin(), values.end()};
}

/// sum_i weights[i] * values[i]: turns a tensor into a scalar whose gradient is backward(weights).
template <class T>
T weighted_sum(std::span<const double> weights, const std::vector<T>& values) {
  T sum = 0;
  for (size_t i = 0; i < values.size(); ++i) sum += weights[i] * values[i];
  return sum;
}

}  // namespace tessera::reference
