#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <vector>

namespace tessera::reference {

/// losses of kernels/cross_entropy.h: logits [tokens, columns]. The maximum is a constant.
template <class T>
std::vector<T> cross_entropy(const std::vector<T>& logits, const std::vector<double>& targets,
                             size_t vocabulary) {
  const size_t columns = logits.size() / targets.size();
  std::vector<T> losses;
  for (size_t t = 0; t < targets.size(); ++t) {
    if (targets[t] < 0) {
      losses.push_back(0);
      continue;
    }
    const T* const row = logits.data() + t * columns;
    double most = std::real(row[0]);
    for (size_t v = 1; v < vocabulary; ++v) most = std::max(most, std::real(row[v]));
    T total = 0;
    for (size_t v = 0; v < vocabulary; ++v) total += std::exp(row[v] - most);
    losses.push_back(std::log(total) + most - row[static_cast<size_t>(targets[t])]);
  }
  return losses;
}

}  // namespace tessera::reference
