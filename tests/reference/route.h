#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "kernels/route.h"

namespace tessera::reference {

inline double real_part(double x) {
  return x;
}
inline double real_part(const std::complex<double>& x) {
  return x.real();
}

template <class T>
std::vector<T> softmax(std::vector<T> x) {
  using std::exp;
  double largest = real_part(x.front());
  for (const T& value : x) largest = std::max(largest, real_part(value));
  T sum = 0;
  for (T& value : x) sum += value = exp(value - largest);
  for (T& value : x) value /= sum;
  return x;
}

template <class T>
std::vector<T> sigmoid(std::vector<T> x) {
  using std::exp;
  for (T& value : x) value = 1.0 / (1.0 + exp(-value));
  return x;
}

/// One token: the k experts of kernels/route.h, best first, by their definition.
inline std::vector<int32_t> choose_experts(RouterMode mode, const std::vector<double>& logits,
                                           const std::vector<double>& bias, int64_t k) {
  std::vector<double> key = logits;
  if (mode == RouterMode::kSigmoid) key = sigmoid(logits);
  if (mode == RouterMode::kSoftmax || mode == RouterMode::kSoftmaxNormalized) key = softmax(logits);
  for (size_t e = 0; e < bias.size(); ++e) key[e] += bias[e];
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t left, int32_t right) {
    return std::pair(-key[static_cast<size_t>(left)], left) <
           std::pair(-key[static_cast<size_t>(right)], right);
  });
  order.resize(static_cast<size_t>(k));
  return order;
}

/// One token: the combine weights of `chosen`.
template <class T>
std::vector<T> combine_weights(RouterMode mode, double scale, const std::vector<T>& logits,
                               std::span<const int32_t> chosen) {
  const bool after_choice = mode == RouterMode::kSoftmaxTopK;
  std::vector<T> scores = mode == RouterMode::kSigmoid ? sigmoid(logits) : softmax(logits);
  std::vector<T> weights;
  for (const int32_t e : chosen) {
    weights.push_back((after_choice ? logits : scores)[static_cast<size_t>(e)]);
  }
  if (after_choice) return softmax(weights);
  if (mode == RouterMode::kSoftmax) return weights;
  const bool scaled = mode == RouterMode::kSigmoid;
  const T sum = std::accumulate(weights.begin(), weights.end(), T(scaled ? 1e-20 : 0));
  for (T& weight : weights) weight *= (scaled ? scale : 1) / sum;
  return weights;
}

/// The scope of each token; `starts` as scope_starts of kernels/route.h.
inline std::vector<size_t> scopes_of_tokens(std::span<const int32_t> starts) {
  std::vector<size_t> scopes;
  for (size_t s = 0; s + 1 < starts.size(); ++s) {
    scopes.insert(scopes.end(), static_cast<size_t>(starts[s + 1] - starts[s]), s);
  }
  return scopes;
}

/// (balance, z) of all tokens, with counts [scopes, experts] taken as constants.
template <class T>
std::pair<T, T> router_losses(RouterMode mode, const std::vector<T>& logits,
                              const std::vector<double>& counts, int64_t experts,
                              std::span<const size_t> scope_of, double k, double scope_tokens,
                              double balance_coefficient, double z_coefficient) {
  using std::exp;
  using std::log;
  const auto width = static_cast<size_t>(experts);
  const size_t tokens = logits.size() / width;
  T balance = 0;
  T z = 0;
  for (size_t t = 0; t < tokens; ++t) {
    const std::vector<T> row(&logits[t * width], &logits[t * width] + width);
    const double* n = &counts[scope_of[t] * width];
    std::vector<T> p = mode == RouterMode::kSigmoid ? sigmoid(row) : softmax(row);
    const T total = std::accumulate(p.begin(), p.end(), T(0));
    T all = 0;
    for (size_t e = 0; e < width; ++e) {
      balance += n[e] * p[e] / total;
      all += exp(row[e]);
    }
    z += log(all) * log(all);
  }
  return {balance * balance_coefficient * static_cast<double>(experts) /
              (k * scope_tokens * scope_tokens),
          z * z_coefficient / scope_tokens};
}

}  // namespace tessera::reference
