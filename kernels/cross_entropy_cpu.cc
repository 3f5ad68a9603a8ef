#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/fast_math.h"
#include "kernels/core/grain.h"
#include "kernels/core/simd.h"
#include "kernels/cross_entropy.h"

// Two passes over the logits. Exponentials are computed twice rather than kept: a bf16 output has
// no room for them.

namespace tessera::cpu {

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// The maximum of nothing: finite, so that exp(l - m) is 0 for l = -inf, and not NaN.
constexpr float kLowest = std::numeric_limits<float>::lowest();

struct Stats {
  float maximum = kLowest;
  float sum = 0;
  float target = kMinusInfinity;
};

Stats load_stats(const float* from) {
  return {from[0], from[1], from[2]};
}

void store_stats(float* to, const Stats& stats) {
  to[0] = stats.maximum;
  to[1] = stats.sum;
  to[2] = stats.target;
}

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

/// Columns of a shard that are no padding.
int64_t words_of(int64_t columns, int64_t first, int64_t vocabulary) {
  return std::clamp<int64_t>(vocabulary - first, 0, columns);
}

/// maximum and sum of a row. Adds up in double over blocks that f32 sums well and that the first
/// cache holds between the two loops.
template <class T>
Stats row_stats(const T* logits, int64_t words) {
  constexpr int64_t kBlock = 2048;
  Stats stats;
  double total = 0;
  for (int64_t first = 0; first < words; first += kBlock) {
    const T* const block = logits + first;
    const int64_t count = std::min(kBlock, words - first);
    F32x16 most = broadcast(stats.maximum);
    for_lanes(count, [&](int64_t v, int64_t lanes) {
      most = larger(load_first(block + v, lanes, kMinusInfinity), most);
    });
    const float before = stats.maximum;
    const float offset = largest(most);
    stats.maximum = offset;
    if (offset > before) total *= std::exp(double{before} - double{offset});
    F32x16 part{};
    for_lanes(count, [&](int64_t v, int64_t lanes) {
      part += fast_exp(load_first(block + v, lanes, kMinusInfinity) - offset);
    });
    total += sum(part);
  }
  stats.sum = static_cast<float>(total);
  return stats;
}

/// target: column, or -1 when it is in another shard.
template <class T, class D>
void row_gradient(const T* logits, D* dlogits, int64_t words, int64_t target, const Stats& stats,
                  float scale) {
  const float chosen = target < 0 ? 0 : to_float(logits[target]);  // dlogits may overwrite it
  const float offset = stats.maximum;
  const float factor = scale / stats.sum;
  for_lanes(words, [&](int64_t v, int64_t lanes) {
    store_first(dlogits + v, fast_exp(load_first(logits + v, lanes) - offset) * factor, lanes);
  });
  if (target >= 0) dlogits[target] = from_float<D>(fast_exp(chosen - offset) * factor - scale);
}

}  // namespace

void softmax_stats(ThreadPool& threads, const SoftmaxStats& a) {
  const int64_t tokens = a.logits.shape()[0];
  const int64_t columns = a.logits.shape()[1];
  const int64_t words = words_of(columns, a.first, a.vocabulary);
  const auto targets = a.targets.as<int32_t>();
  float* const stats = a.stats.as<float>().data();
  check_targets(targets, a.vocabulary);
  with_float_type(a.logits.dtype(), [&]<class T>() {
    const T* const logits = a.logits.as<T>().data();
    threads.for_ranges(tokens, row_grain(columns), [&, logits](int64_t from, int64_t to) {
      for (int64_t t = from; t < to; ++t) {
        const int32_t target = targets[static_cast<size_t>(t)];
        Stats found;
        if (target >= 0) {
          found = row_stats(logits + t * columns, words);
          const int64_t column = target - a.first;
          if (column >= 0 && column < words) found.target = to_float(logits[t * columns + column]);
        }
        store_stats(stats + t * kSoftmaxStats, found);
      }
    });
  });
}

void merge_softmax_stats(ThreadPool& threads, const MergeSoftmaxStats& a) {
  const int64_t shards = a.stats.shape()[0];
  const int64_t tokens = a.stats.shape()[1];
  const auto targets = a.targets.as<int32_t>();
  const float* const stats = a.stats.as<float>().data();
  float* const merged = a.merged.as<float>().data();
  float* const losses = a.losses.as<float>().data();
  float* const hits = a.hits.empty() ? nullptr : a.hits.as<float>().data();
  threads.for_ranges(tokens, row_grain(shards * kSoftmaxStats), [=](int64_t from, int64_t to) {
    for (int64_t t = from; t < to; ++t) {
      const auto of_shard = [=](int64_t shard) {
        return load_stats(stats + (shard * tokens + t) * kSoftmaxStats);
      };
      Stats all;
      for (int64_t shard = 0; shard < shards; ++shard) {
        const Stats part = of_shard(shard);
        all.maximum = std::max(all.maximum, part.maximum);
        if (part.target != kMinusInfinity) all.target = part.target;  // also when it is NaN
      }
      double total = 0;
      for (int64_t shard = 0; shard < shards; ++shard) {
        const Stats part = of_shard(shard);
        total += part.sum * std::exp(double{part.maximum} - double{all.maximum});
      }
      all.sum = static_cast<float>(total);
      store_stats(merged + t * kSoftmaxStats, all);
      const double loss = std::log(total) + (double{all.maximum} - double{all.target});
      const bool counts = targets[static_cast<size_t>(t)] >= 0;
      losses[t] = counts ? static_cast<float>(loss) : 0;
      if (hits != nullptr) hits[t] = counts && all.target >= all.maximum ? 1 : 0;
    }
  });
}

void cross_entropy_gradient(ThreadPool& threads, const CrossEntropyGradient& a) {
  const int64_t tokens = a.logits.shape()[0];
  const int64_t columns = a.logits.shape()[1];
  const int64_t words = words_of(columns, a.first, a.vocabulary);
  const auto targets = a.targets.as<int32_t>();
  const float* const merged = a.merged.as<float>().data();
  const float scale = a.scale_from.empty() ? a.scale : a.scale_from.as<float>()[0];
  with_float_type(a.logits.dtype(), [&]<class T>() {
    with_float_type(a.dlogits.dtype(), [&]<class D>() {
      const T* const logits = a.logits.as<T>().data();
      D* const dlogits = a.dlogits.as<D>().data();
      threads.for_ranges(tokens, row_grain(columns),
                         [&, logits, dlogits](int64_t from, int64_t to) {
                           for (int64_t t = from; t < to; ++t) {
                             const int32_t target = targets[static_cast<size_t>(t)];
                             D* const row = dlogits + t * columns;
                             if (target >= 0) {
                               const int64_t column = target - a.first;
                               row_gradient(logits + t * columns, row, words,
                                            column >= 0 && column < words ? column : -1,
                                            load_stats(merged + t * kSoftmaxStats), scale);
                             }
                             std::fill(row + (target < 0 ? 0 : words), row + columns, D{});
                           }
                         });
    });
  });
}

}  // namespace tessera::cpu
