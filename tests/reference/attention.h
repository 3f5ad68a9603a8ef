#pragma once

#include <cmath>
#include <complex>
#include <optional>
#include <vector>

#include "tests/reference/gate.h"
#include "tests/support/segments.h"

namespace tessera::reference {

/// Attention by its definition (kernels/attention.h, kernels/sparse_attention.h), one pair of
/// tokens at a time, in T = double or std::complex<double>.
struct AttentionShape {
  int64_t heads;
  int64_t kv_heads;
  int64_t d;
  double scale;
  int64_t group(int64_t head) const { return head / (heads / kv_heads); }
};

template <class T>
struct AttentionInput {
  std::vector<T> q;            ///< [tokens, heads, d]
  std::vector<T> k;            ///< [tokens, kv_heads, d]
  std::vector<T> v;            ///< [tokens, kv_heads, d]
  std::vector<T> sink_logits;  ///< [heads], or empty
};

template <class T>
struct AttentionOutput {
  std::vector<T> o;    ///< [tokens, heads, d]
  std::vector<T> lse;  ///< [heads, tokens]
};

inline size_t at(int64_t token, int64_t head, int64_t heads, int64_t d, int64_t i = 0) {
  return static_cast<size_t>((token * heads + head) * d + i);
}

/// Scores of token i with the tokens of its segment up to itself. `log_gate(group, i, j)` is what
/// is added to a score, or std::nullopt when i does not attend to j.
template <class T, class LogGate>
std::vector<std::optional<T>> attention_scores(const support::Segments& segments,
                                               const AttentionShape& shape,
                                               const AttentionInput<T>& x, int64_t head, int64_t i,
                                               const LogGate& log_gate) {
  std::vector<std::optional<T>> scores;
  for (int64_t j = segments.start(segments.segment(i)); j <= i; ++j) {
    const std::optional<T> gate = log_gate(shape.group(head), i, j);
    scores.emplace_back();
    if (!gate) continue;
    T product = 0;
    for (int64_t e = 0; e < shape.d; ++e) {
      product += x.q[at(i, head, shape.heads, shape.d, e)] *
                 x.k[at(j, shape.group(head), shape.kv_heads, shape.d, e)];
    }
    scores.back() = shape.scale * product + *gate;
  }
  return scores;
}

template <class T, class LogGate>
AttentionOutput<T> attention(const support::Segments& segments, const AttentionShape& shape,
                             const AttentionInput<T>& x, const LogGate& log_gate) {
  using std::exp;
  const int64_t tokens = segments.tokens();
  AttentionOutput<T> out{std::vector<T>(x.q.size()),
                         std::vector<T>(static_cast<size_t>(shape.heads * tokens))};
  for (int64_t head = 0; head < shape.heads; ++head) {
    for (int64_t i = 0; i < tokens; ++i) {
      const auto scores = attention_scores(segments, shape, x, head, i, log_gate);
      std::vector<T> seen;
      for (const auto& score : scores) {
        if (score) seen.push_back(*score);
      }
      if (!x.sink_logits.empty()) seen.push_back(x.sink_logits[static_cast<size_t>(head)]);
      const T lse = log_sum_exp(seen);
      out.lse[static_cast<size_t>(head * tokens + i)] = lse;
      for (size_t s = 0; s < scores.size(); ++s) {
        if (!scores[s]) continue;
        const T p = exp(*scores[s] - lse);
        const int64_t j = segments.start(segments.segment(i)) + static_cast<int64_t>(s);
        for (int64_t e = 0; e < shape.d; ++e) {
          out.o[at(i, head, shape.heads, shape.d, e)] +=
              p * x.v[at(j, shape.group(head), shape.kv_heads, shape.d, e)];
        }
      }
    }
  }
  return out;
}

struct AttentionGradient {
  std::vector<double> dq;
  std::vector<double> dk;
  std::vector<double> dv;
  std::vector<double> dsink_logits;
  std::vector<std::vector<double>> ds;  ///< [heads * tokens][keys from the start of the segment]
};

/// dgsa 2.5, for gradients of shapes that are too large for the complex step.
template <class LogGate>
AttentionGradient attention_gradient(const support::Segments& segments, const AttentionShape& shape,
                                     const AttentionInput<double>& x,
                                     const std::vector<double>& d_o, const LogGate& log_gate) {
  const auto forward = attention(segments, shape, x, log_gate);
  const int64_t tokens = segments.tokens();
  AttentionGradient out{std::vector<double>(x.q.size()),
                        std::vector<double>(x.k.size()),
                        std::vector<double>(x.v.size()),
                        std::vector<double>(x.sink_logits.size()),
                        {}};
  for (int64_t head = 0; head < shape.heads; ++head) {
    for (int64_t i = 0; i < tokens; ++i) {
      const double lse = forward.lse[static_cast<size_t>(head * tokens + i)];
      const size_t row = at(i, head, shape.heads, shape.d);
      const auto width = static_cast<size_t>(shape.d);
      double delta = 0;
      for (size_t e = 0; e < width; ++e) delta += d_o[row + e] * forward.o[row + e];
      if (!x.sink_logits.empty()) {
        const auto h = static_cast<size_t>(head);
        out.dsink_logits[h] -= std::exp(x.sink_logits[h] - lse) * delta;
      }
      const auto scores = attention_scores(segments, shape, x, head, i, log_gate);
      out.ds.emplace_back(scores.size());
      for (size_t s = 0; s < scores.size(); ++s) {
        if (!scores[s]) continue;
        const int64_t j = segments.start(segments.segment(i)) + static_cast<int64_t>(s);
        const size_t key = at(j, shape.group(head), shape.kv_heads, shape.d);
        const double p = std::exp(*scores[s] - lse);
        double dp = 0;
        for (size_t e = 0; e < width; ++e) dp += d_o[row + e] * x.v[key + e];
        const double ds = p * (dp - delta);
        out.ds.back()[s] = ds;
        for (size_t e = 0; e < width; ++e) {
          out.dv[key + e] += p * d_o[row + e];
          out.dq[row + e] += shape.scale * ds * x.k[key + e];
          out.dk[key + e] += shape.scale * ds * x.q[row + e];
        }
      }
    }
  }
  return out;
}

/// The log gate of kernels/attention.h: 0 within the window and on the first tokens.
template <class T>
auto window_gate(const support::Segments& segments, int64_t window, int64_t sink_tokens) {
  return [&segments, window, sink_tokens](int64_t, int64_t i, int64_t j) -> std::optional<T> {
    const bool seen = i - j < window || segments.position(j) < sink_tokens;
    return seen ? std::optional<T>(T(0)) : std::nullopt;
  };
}

}  // namespace tessera::reference
