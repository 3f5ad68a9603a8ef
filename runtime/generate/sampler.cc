#include "runtime/generate/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/random.h"

namespace tessera {

namespace {

/// Tokens from the most likely on. A vocabulary has a hundred thousand of them and a few are asked
/// for, so they are not sorted.
class ByLikelihood {
 public:
  explicit ByLikelihood(std::span<const float> logits) : logits_(logits), heap_(logits.size()) {
    std::iota(heap_.begin(), heap_.end(), 0);
    std::ranges::make_heap(heap_, std::bind_front(&ByLikelihood::less, this));
  }

  int32_t front() const { return heap_.front(); }
  void pop() {
    std::ranges::pop_heap(heap_, std::bind_front(&ByLikelihood::less, this));
    heap_.pop_back();
  }
  bool empty() const { return heap_.empty(); }
  double logit(int32_t token) const {
    const float value = logits_[static_cast<size_t>(token)];
    return std::isnan(value) ? -INFINITY : value;
  }

 private:
  bool less(int32_t a, int32_t b) const {
    const double x = logit(a);
    const double y = logit(b);
    return x != y ? x < y : a > b;
  }

  std::span<const float> logits_;
  std::vector<int32_t> heap_;
};

}  // namespace

int32_t sample(std::span<const float> logits, const SamplerOptions& options, uint64_t draw) {
  CHECK(!logits.empty(), "sample: there are no logits");
  ByLikelihood tokens(logits);
  const double most = tokens.logit(tokens.front());
  if (options.temperature == 0 || !std::isfinite(most)) return tokens.front();

  const auto weight = [&](int32_t token) {
    return std::exp((tokens.logit(token) - most) / options.temperature);
  };
  double all = 0;
  for (int32_t token = 0; token < std::ssize(logits); ++token) all += weight(token);
  std::vector<int32_t> likely;
  double kept = 0;
  for (; !tokens.empty() && (likely.empty() || kept < options.top_p * all); tokens.pop()) {
    if (weight(tokens.front()) == 0) break;
    likely.push_back(tokens.front());
    kept += weight(tokens.front());
  }
  double left = uniform(philox(options.seed, 0, draw)[0]) * kept;
  for (const int32_t token : likely) {
    left -= weight(token);
    if (left < 0) return token;
  }
  return likely.back();  // rounding left a little over
}

}  // namespace tessera
