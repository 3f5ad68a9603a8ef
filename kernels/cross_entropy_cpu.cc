#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/fast_math.h"
#include "kernels/core/grain.h"
#include "kernels/core/simd.h"
#include "kernels/cross_entropy.h"

// Three passes over a row of logits; the second and third find it in the second cache. Exponentials
// are computed twice rather than kept: a bf16 output has no room for them.

namespace tessera::cpu {

namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

void check_targets(std::span<const int32_t> targets, int64_t vocabulary) {
  for (size_t t = 0; t < targets.size(); ++t) {
    if (targets[t] < vocabulary) continue;
    throw Error(
        ExitCode::kBadData,
        concat("cross_entropy: token ", t, " has target ", targets[t], ", expected at most ",
               vocabulary - 1,
               "; use data of the model's tokenizer, or a model whose vocabulary holds it"));
  }
}

template <class T>
float maximum(const T* logits, int64_t vocabulary) {
  F32x16 most = broadcast(kLowest);
  for_lanes(vocabulary, [&](int64_t v, int64_t lanes) {
    most = larger(load_first(logits + v, lanes, kLowest), most);
  });
  return largest(most);
}

/// sum_v exp(logits[v] - offset), added up in double over blocks that f32 sums well.
template <class T>
double exp_sum(const T* logits, int64_t vocabulary, float offset) {
  constexpr int64_t kBlock = 2048;
  double total = 0;
  for (int64_t first = 0; first < vocabulary; first += kBlock) {
    F32x16 part{};
    for_lanes(std::min(kBlock, vocabulary - first), [&](int64_t v, int64_t lanes) {
      part += fast_exp(load_first(logits + first + v, lanes, kLowest) - offset);
    });
    total += sum(part);
  }
  return total;
}

/// One row; dlogits may be null. Returns the loss.
template <class T, class D>
float row_loss(const T* logits, D* dlogits, int64_t target, int64_t vocabulary, float scale) {
  const float offset = maximum(logits, vocabulary);
  const double total = exp_sum(logits, vocabulary, offset);
  const float chosen = to_float(logits[target]);  // dlogits may overwrite it
  if (dlogits != nullptr) {
    const auto factor = static_cast<float>(scale / total);
    for_lanes(vocabulary, [&](int64_t v, int64_t lanes) {
      const F32x16 p = fast_exp(load_first(logits + v, lanes) - offset);
      store_first(dlogits + v, p * factor, lanes);
    });
    dlogits[target] = from_float<D>(fast_exp(chosen - offset) * factor - scale);
  }
  return static_cast<float>(std::log(total) + (double{offset} - double{chosen}));
}

}  // namespace

void cross_entropy(ThreadPool& threads, const CrossEntropy& a) {
  const int64_t tokens = a.logits.shape()[0];
  const int64_t columns = a.logits.shape()[1];
  const auto targets = a.targets.as<int32_t>();
  check_targets(targets, a.vocabulary);
  const DType out = a.dlogits.empty() ? DType::kF32 : a.dlogits.dtype();
  with_float_type(a.logits.dtype(), [&]<class T>() {
    with_float_type(out, [&]<class D>() {
      const T* const logits = a.logits.as<T>().data();
      D* const dlogits = a.dlogits.empty() ? nullptr : a.dlogits.as<D>().data();
      float* const losses = a.losses.as<float>().data();
      threads.for_ranges(
          tokens, row_grain(columns), [&, logits, dlogits](int64_t from, int64_t to) {
            for (int64_t t = from; t < to; ++t) {
              const int32_t target = targets[static_cast<size_t>(t)];
              D* const row = dlogits == nullptr ? nullptr : dlogits + t * columns;
              losses[t] = 0;
              if (target >= 0) {
                losses[t] = row_loss(logits + t * columns, row, target, a.vocabulary, a.scale);
              }
              if (row != nullptr)
                std::fill(row + (target < 0 ? 0 : a.vocabulary), row + columns, D{});
            }
          });
    });
  });
}

}  // namespace tessera::cpu
