#pragma once

#include <cmath>
#include <complex>
#include <vector>

namespace tessera::reference {

template <class T>
T sigmoid(T x) {
  return 1.0 / (1.0 + std::exp(-x));
}

/// y of kernels/swiglu.h: gate_up [rows, 2 * dim], row_weight [rows].
template <class T>
std::vector<T> swiglu(const std::vector<T>& gate_up, const std::vector<T>& row_weight) {
  const size_t rows = row_weight.size();
  const size_t dim = gate_up.size() / rows / 2;
  std::vector<T> y;
  for (size_t r = 0; r < rows; ++r) {
    for (size_t j = 0; j < dim; ++j) {
      const T g = gate_up[r * 2 * dim + j];
      const T u = gate_up[r * 2 * dim + dim + j];
      y.push_back(row_weight[r] * (g * sigmoid(g)) * u);
    }
  }
  return y;
}

/// y of sigmoid_gate_forward in kernels/elementwise.h.
template <class T>
std::vector<T> sigmoid_gate(const std::vector<T>& x, const std::vector<T>& g) {
  std::vector<T> y;
  for (size_t i = 0; i < x.size(); ++i) y.push_back(x[i] * sigmoid(g[i]));
  return y;
}

}  // namespace tessera::reference
