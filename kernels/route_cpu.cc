#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <span>

#include "kernels/core/fast_math.h"
#include "kernels/route.h"

namespace tessera::cpu {

namespace {

constexpr int64_t kTokenGrain = 64;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Keeps the weights of a token finite when all its scores underflow. Source: DeepSeek-V3.
constexpr float kTinyScore = 1e-20f;

using Scores = std::array<float, kMaxExperts>;

template <class T>
std::span<T> row_of(std::span<T> x, int64_t row, int64_t length) {
  return x.subspan(static_cast<size_t>(row * length), static_cast<size_t>(length));
}

float sum_of(std::span<const float> x) {
  F32x16 total{};
  for_lanes(static_cast<int64_t>(x.size()),
            [&](int64_t i, int64_t lanes) { total += load_first(x.data() + i, lanes); });
  return sum(total);
}

/// scores[i] = e^(logits[i] - largest), where the largest is returned in `largest`.
std::span<float> exponentials(std::span<const float> logits, Scores& scores, float& largest_logit) {
  largest_logit = *std::max_element(logits.begin(), logits.end());
  for (size_t i = 0; i < logits.size(); ++i) scores[i] = fast_exp(logits[i] - largest_logit);
  return {scores.data(), logits.size()};
}

std::span<float> sigmoids(std::span<const float> logits, Scores& scores) {
  for (size_t i = 0; i < logits.size(); ++i) scores[i] = fast_sigmoid(logits[i]);
  return {scores.data(), logits.size()};
}

/// The indices of the largest keys, in descending order, the lower index first among equals.
/// Returns whether a key was NaN.
bool choose(std::span<const float> keys, std::span<int32_t> chosen) {
  Scores best;
  size_t count = 0;
  bool found_nan = false;
  for (size_t e = 0; e < keys.size(); ++e) {
    const bool is_nan = std::isnan(keys[e]);
    const float key = is_nan ? -kInfinity : keys[e];
    found_nan = found_nan || is_nan;
    if (count == chosen.size() && !(key > best[count - 1])) continue;
    size_t at = count < chosen.size() ? count++ : count - 1;
    for (; at > 0 && key > best[at - 1]; --at) {
      best[at] = best[at - 1];
      chosen[at] = chosen[at - 1];
    }
    best[at] = key;
    chosen[at] = static_cast<int32_t>(e);
  }
  return found_nan;
}

/// weights = what the mode says of the chosen experts.
void weigh(RouterMode mode, float scale, std::span<const float> logits,
           std::span<const int32_t> chosen, std::span<float> weights) {
  Scores scores;
  float factor = 0;
  if (mode == RouterMode::kSoftmax) {
    float largest_logit = 0;
    factor = 1 / sum_of(exponentials(logits, scores, largest_logit));
    for (size_t s = 0; s < chosen.size(); ++s) {
      weights[s] = scores[static_cast<size_t>(chosen[s])];
    }
  } else if (mode == RouterMode::kSigmoid) {
    for (size_t s = 0; s < chosen.size(); ++s) {
      weights[s] = fast_sigmoid(logits[static_cast<size_t>(chosen[s])]);
    }
    factor = scale / (sum_of(weights) + kTinyScore);
  } else {
    // p / sum_S p is the softmax over S: the sum over all experts cancels.
    float largest_logit = -kInfinity;
    for (const int32_t e : chosen) {
      largest_logit = std::max(largest_logit, logits[static_cast<size_t>(e)]);
    }
    for (size_t s = 0; s < chosen.size(); ++s) {
      weights[s] = fast_exp(logits[static_cast<size_t>(chosen[s])] - largest_logit);
    }
    factor = 1 / sum_of(weights);
  }
  for (float& weight : weights) weight *= factor;
}

/// dlogits = the gradient of sum dweights * weigh(...).
void weigh_backward(const RouteBackward& a, std::span<const float> logits,
                    std::span<const int32_t> chosen, std::span<const float> dweights,
                    std::span<float> dlogits) {
  Scores buffer;
  const std::span<float> weights{buffer.data(), chosen.size()};
  weigh(a.mode, 1, logits, chosen, weights);
  float dot = 0;  // sum_S dw * w
  for (size_t s = 0; s < chosen.size(); ++s) dot += dweights[s] * weights[s];

  if (a.mode == RouterMode::kSoftmax) {
    Scores scores;
    float largest_logit = 0;
    const auto p = exponentials(logits, scores, largest_logit);
    const float factor = 1 / sum_of(p);
    for (size_t e = 0; e < dlogits.size(); ++e) dlogits[e] = -p[e] * factor * dot;
  } else {
    std::fill(dlogits.begin(), dlogits.end(), 0.0f);
  }
  for (size_t s = 0; s < chosen.size(); ++s) {
    const auto e = static_cast<size_t>(chosen[s]);
    if (a.mode == RouterMode::kSoftmax) {
      dlogits[e] += weights[s] * dweights[s];
    } else {
      // dw / ds times ds / dl: 1 for a softmax, 1 - s for a sigmoid.
      const float slope = a.mode == RouterMode::kSigmoid ? a.scale * fast_sigmoid(-logits[e]) : 1;
      dlogits[e] = weights[s] * (dweights[s] - dot) * slope;
    }
  }
}

void check_choice(std::span<const int32_t> chosen, int64_t experts) {
  for (const int32_t e : chosen) {
    CHECK(e >= 0 && e < experts, "route_backward: experts has ", e, ", expected 0 to ",
          experts - 1);
  }
}

/// The scope of each token.
class Scopes {
 public:
  Scopes(const ConstTensorView& scope_starts, int64_t scopes, int64_t tokens)
      : starts_(scope_starts.empty() ? std::span<const int32_t>{} : scope_starts.as<int32_t>()),
        scope_tokens_(tokens / scopes) {
    if (starts_.empty()) return;
    CHECK(starts_.front() == 0 && starts_.back() == tokens &&
              std::is_sorted(starts_.begin(), starts_.end()),
          "router: scope_starts goes from ", starts_.front(), " to ", starts_.back(),
          ", expected to ascend from 0 to ", tokens, ", the number of tokens");
  }

  int64_t of(int64_t token) const {
    if (starts_.empty()) return token / scope_tokens_;
    return std::upper_bound(starts_.begin(), starts_.end(), token) - starts_.begin() - 1;
  }

 private:
  std::span<const int32_t> starts_;
  int64_t scope_tokens_;
};

struct Losses {
  double balance = 0;
  double z = 0;
};

/// Adds the gradient of one token's part of both losses to dlogits and returns that part.
/// `balance` is coefficient * E / (k T^2), `z` is coefficient / T.
Losses add_token(RouterMode mode, float balance, float z, std::span<const float> logits,
                 std::span<const float> counts, std::span<float> dlogits) {
  Scores buffer;
  float largest_logit = 0;
  const auto p = exponentials(logits, buffer, largest_logit);
  const float total = sum_of(p);
  const float lse = largest_logit + std::log(total);
  for (float& value : p) value *= 1 / total;
  const float dz = 2 * z * lse;
  for (size_t e = 0; e < p.size(); ++e) dlogits[e] += dz * p[e];

  const bool sigmoid = mode == RouterMode::kSigmoid;
  if (sigmoid) {
    const float factor = 1 / sum_of(sigmoids(logits, buffer));
    for (float& score : p) score *= factor;
  }
  float dot = 0;
  for (size_t e = 0; e < p.size(); ++e) dot += counts[e] * p[e];
  for (size_t e = 0; e < p.size(); ++e) {
    const float slope = sigmoid ? fast_sigmoid(-logits[e]) : 1;
    dlogits[e] += balance * p[e] * (counts[e] - dot) * slope;
  }
  return {balance * dot, z * lse * lse};
}

}  // namespace

void route_forward(ThreadPool& threads, const RouteForward& a) {
  const int64_t tokens = a.logits.shape()[0];
  const int64_t experts = a.logits.shape()[1];
  const int64_t k = a.experts.shape()[1];
  const auto logits = a.logits.as<float>();
  const auto chosen = a.experts.as<int32_t>();
  const auto weights = a.weights.as<float>();
  const auto bias = a.bias.empty() ? std::span<const float>{} : a.bias.as<float>();
  const Scopes scopes(a.scope_starts, a.counts.shape()[0], tokens);
  threads.for_ranges(tokens, kTokenGrain, [&](int64_t begin, int64_t end) {
    Scores scores;
    for (int64_t t = begin; t < end; ++t) {
      const auto l = row_of(logits, t, experts);
      std::span<const float> keys = l;
      if (a.mode == RouterMode::kSigmoid) {
        const auto s = sigmoids(l, scores);
        for (size_t e = 0; e < bias.size(); ++e) s[e] += bias[e];
        keys = s;
      }
      const auto w = row_of(weights, t, k);
      const bool found_nan = choose(keys, row_of(chosen, t, k));
      weigh(a.mode, a.scale, l, row_of(chosen, t, k), w);
      if (found_nan) std::fill(w.begin(), w.end(), std::numeric_limits<float>::quiet_NaN());
    }
  });

  const auto counts = a.counts.as<float>();
  std::fill(counts.begin(), counts.end(), 0.0f);
  for (int64_t t = 0; t < tokens; ++t) {
    const auto of_scope = row_of(counts, scopes.of(t), experts);
    for (const int32_t e : row_of(chosen, t, k)) of_scope[static_cast<size_t>(e)] += 1;
  }
}

void route_backward(ThreadPool& threads, const RouteBackward& a) {
  const int64_t experts = a.logits.shape()[1];
  const int64_t k = a.experts.shape()[1];
  const auto logits = a.logits.as<float>();
  const auto chosen = a.experts.as<int32_t>();
  const auto dweights = a.dweights.as<float>();
  const auto dlogits = a.dlogits.as<float>();
  check_choice(chosen, experts);
  threads.for_ranges(a.logits.shape()[0], kTokenGrain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      weigh_backward(a, row_of(logits, t, experts), row_of(chosen, t, k), row_of(dweights, t, k),
                     row_of(dlogits, t, experts));
    }
  });
}

void router_loss(ThreadPool& threads, const RouterLoss& a) {
  const int64_t tokens = a.logits.shape()[0];
  const int64_t experts = a.logits.shape()[1];
  const Scopes scopes(a.scope_starts, a.counts.shape()[0], tokens);
  if (tokens == 0) return;
  const auto scope_tokens = static_cast<float>(a.scope_tokens);
  const float balance = a.balance_coefficient * static_cast<float>(experts) /
                        (static_cast<float>(a.experts_per_token) * scope_tokens * scope_tokens);
  const float z = a.z_coefficient / scope_tokens;
  const auto logits = a.logits.as<float>();
  const auto counts = a.counts.as<float>();
  const auto dlogits = a.dlogits.as<float>();

  // A fixed number of partial sums, added in order: the same on any number of threads.
  std::array<Losses, 64> partial{};
  const auto parts = static_cast<int64_t>(partial.size());
  const int64_t grain = (tokens + parts - 1) / parts;
  threads.for_ranges(tokens, grain, [&](int64_t begin, int64_t end) {
    Losses& sum = partial[static_cast<size_t>(begin / grain)];
    for (int64_t t = begin; t < end; ++t) {
      const Losses part =
          add_token(a.mode, balance, z, row_of(logits, t, experts),
                    row_of(counts, scopes.of(t), experts), row_of(dlogits, t, experts));
      sum.balance += part.balance;
      sum.z += part.z;
    }
  });
  Losses total;
  for (const Losses& part : partial) {
    total.balance += part.balance;
    total.z += part.z;
  }
  const auto losses = a.losses.as<float>();
  losses[0] += static_cast<float>(total.balance);
  losses[1] += static_cast<float>(total.z);
}

void balance_bias(ThreadPool&, const BalanceBias& a) {
  const auto bias = a.bias.as<float>();
  const auto counts = a.counts.as<float>();
  double total = 0;
  for (const float count : counts) total += count;
  const double mean = total / static_cast<double>(counts.size());
  for (size_t e = 0; e < bias.size(); ++e) {
    // Nothing for an exact mean, and nothing when a count is NaN.
    if (counts[e] < mean) bias[e] += a.rate;
    if (counts[e] > mean) bias[e] -= a.rate;
  }
}

}  // namespace tessera::cpu
