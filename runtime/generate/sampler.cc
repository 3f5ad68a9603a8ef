#include "runtime/generate/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/core/error.h"
#include "kernels/core/random.h"

namespace tessera {

int32_t sample(std::span<const float> logits, const SamplerOptions& options, uint64_t draw) {
  CHECK(!logits.empty(), "sample: there are no logits");
  const auto logit = [&](int32_t token) {
    const float value = logits[static_cast<size_t>(token)];
    return std::isnan(value) ? -INFINITY : value;
  };
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logit(a) > logit(b); });
  const double most = logit(order.front());
  if (options.temperature == 0 || !std::isfinite(most)) return order.front();

  std::vector<double> weights;
  double all = 0;
  for (const int32_t token : order) {
    weights.push_back(std::exp((logit(token) - most) / options.temperature));
    all += weights.back();
  }
  size_t count = 0;
  double kept = 0;
  while (count < weights.size() && (count == 0 || kept < options.top_p * all)) {
    kept += weights[count++];
  }
  double left = uniform(philox(options.seed, 0, draw)[0]) * kept;
  for (size_t i = 0; i < count; ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  return order[count - 1];  // rounding left a little over
}

}  // namespace tessera
