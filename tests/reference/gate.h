#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <vector>

#include "kernels/block_selection.h"
#include "tests/support/segments.h"

namespace tessera::reference {

/// The gate of dgsa 2.2 - 2.4, one token at a time, in T = double or std::complex<double>.
/// Blocks are numbered within the segment unless said otherwise. Discrete choices depend on real
/// parts only, so results are analytic wherever no two scores are equal.

inline double real_part(double x) {
  return x;
}
inline double real_part(const std::complex<double>& x) {
  return x.real();
}

/// log sum exp of the values.
template <class T>
T log_sum_exp(const std::vector<T>& values) {
  using std::exp;
  using std::log;
  double largest = -1e300;
  for (const T& x : values) largest = std::max(largest, real_part(x));
  T sum = 0;
  for (const T& x : values) sum += exp(x - largest);
  return log(sum) + largest;
}

/// One row of a matrix.
template <class T>
std::vector<T> row_of(const std::vector<T>& matrix, int64_t row, int64_t columns) {
  return {matrix.begin() + row * columns, matrix.begin() + (row + 1) * columns};
}

template <class T, class U>
auto dot(const std::vector<T>& a, const std::vector<U>& b) {
  decltype(a[0] * b[0]) sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
struct Pooled {
  std::vector<T> kbar;   ///< [groups, max_blocks * gate_keys, d]
  std::vector<T> alpha;  ///< [groups, tokens]
};

/// k0 [groups, tokens, d], r [groups, d].
template <class T>
Pooled<T> gate_pool(const support::Segments& segments, const std::vector<T>& k0,
                    const std::vector<T>& r, int64_t groups, int64_t gate_keys) {
  using std::exp;
  const int64_t d = static_cast<int64_t>(r.size()) / groups;
  const int64_t tokens = segments.tokens();
  const int64_t keys = segments.grid().max_blocks() * gate_keys;
  const int64_t part = segments.block() / gate_keys;
  Pooled<T> out{std::vector<T>(static_cast<size_t>(groups * keys * d)),
                std::vector<T>(static_cast<size_t>(groups * tokens))};
  for (int64_t c = 0; c < groups; ++c) {
    for (int64_t j = 0; j < tokens; ++j) {
      const int64_t s = segments.segment(j);
      const int64_t b = segments.own_block(j);
      if ((b + 1) * segments.block() > segments.length(s)) continue;
      const int64_t number = segments.position(j) / part;  // of the part, within the segment
      std::vector<T> logits;
      for (int64_t i = 0; i < part; ++i) {
        const int64_t row = c * tokens + segments.start(s) + number * part + i;
        logits.push_back(dot(row_of(k0, row, d), row_of(r, c, d)));
      }
      const T alpha =
          exp(logits[static_cast<size_t>(segments.position(j) % part)] - log_sum_exp(logits));
      out.alpha[static_cast<size_t>(c * tokens + j)] = alpha;
      const int64_t key = c * keys + segments.first_block(s) * gate_keys + number;
      for (int64_t i = 0; i < d; ++i) {
        out.kbar[static_cast<size_t>(key * d + i)] +=
            alpha * k0[static_cast<size_t>((c * tokens + j) * d + i)];
      }
    }
  }
  return out;
}

/// z of one token and one block: qt [gate_dim], kt [gate_keys, gate_dim].
template <class T>
T gate_score(const std::vector<T>& qt, const std::vector<T>& kt) {
  std::vector<T> products;
  const auto gate_dim = static_cast<int64_t>(qt.size());
  for (int64_t a = 0; a < static_cast<int64_t>(kt.size()) / gate_dim; ++a) {
    products.push_back(dot(qt, row_of(kt, a, gate_dim)) / std::sqrt(static_cast<double>(gate_dim)));
  }
  return log_sum_exp(products);
}

/// Scores of token i of group c with all blocks of its segment up to its own.
/// qt [groups, tokens, gate_dim], kt [groups, max_blocks * gate_keys, gate_dim].
template <class T>
std::vector<T> gate_scores(const support::Segments& segments, const std::vector<T>& qt,
                           const std::vector<T>& kt, int64_t c, int64_t i, int64_t gate_dim,
                           int64_t gate_keys) {
  const int64_t first =
      c * segments.grid().max_blocks() + segments.first_block(segments.segment(i));
  std::vector<T> z;
  for (int64_t b = 0; b <= segments.own_block(i); ++b) {
    z.push_back(gate_score(row_of(qt, c * segments.tokens() + i, gate_dim),
                           row_of(kt, first + b, gate_keys * gate_dim)));
  }
  return z;
}

struct Choice {
  std::vector<int64_t> blocks;  ///< ascending
  int64_t runner_up = -1;       ///< or -1 when nothing was dropped
};

/// The definition: sort all candidates by score, larger blocks first among equals.
template <class Z>
Choice choose(const std::vector<Z>& z, int64_t own_block, const BlockRule& rule) {
  std::vector<int64_t> candidates;
  for (int64_t b = 0; b < own_block; ++b) {
    const bool forced = b < rule.sink_blocks || b > own_block - rule.window_blocks;
    if (!forced) candidates.push_back(b);
  }
  Choice choice;
  const auto kept = static_cast<size_t>(rule.kept);
  if (candidates.size() > kept) {
    std::sort(candidates.begin(), candidates.end(), [&](int64_t a, int64_t b) {
      const Z& left = z[static_cast<size_t>(a)];
      const Z& right = z[static_cast<size_t>(b)];
      return left != right ? left > right : a > b;
    });
    choice.runner_up = candidates[kept];
    candidates.resize(kept);
    std::sort(candidates.begin(), candidates.end());
  }
  choice.blocks = candidates;
  return choice;
}

/// Levels of a tree of keys: leaves [count, gate_dim], then complete nodes only, each the mean of
/// its `radix` children, while a level has more than `most` nodes.
template <class T>
std::vector<std::vector<T>> gate_tree(const std::vector<T>& leaves, int64_t gate_dim, int64_t radix,
                                      int64_t most) {
  std::vector<std::vector<T>> levels{leaves};
  while (std::ssize(levels.back()) / gate_dim > most) {
    const std::vector<T>& below = levels.back();
    const int64_t nodes = std::ssize(below) / gate_dim / radix;
    std::vector<T> keys;
    for (int64_t node = 0; node < nodes; ++node) {
      for (int64_t d = 0; d < gate_dim; ++d) {
        T sum = 0;
        for (int64_t e = 0; e < radix; ++e) {
          sum += below[static_cast<size_t>((node * radix + e) * gate_dim + d)];
        }
        keys.push_back(sum / static_cast<T>(radix));
      }
    }
    levels.push_back(keys);
  }
  return levels;
}

struct TreeChoice {
  Choice choice;       ///< of leaves
  int64_t scored = 0;  ///< nodes
};

/// The tree of dgsa 2.3, for `candidates` complete leaves: score(level, node) of a tree with
/// `levels` levels. On every level above the leaves it scores only if there are more nodes than
/// `beam`.
template <class Score>
TreeChoice choose_in_tree(Score&& score, int64_t levels, int64_t candidates, int64_t radix,
                          int64_t beam, int64_t kept) {
  std::vector<int64_t> complete{candidates};
  while (std::ssize(complete) < levels) complete.push_back(complete.back() / radix);
  TreeChoice result;
  // The best `count` of `nodes`, best first: larger numbers among equals, no number after all.
  const auto best = [&](int64_t level, const std::vector<int64_t>& nodes, int64_t count) {
    result.scored += std::ssize(nodes);
    using Scored = std::pair<decltype(score(0, 0)), int64_t>;
    std::vector<Scored> scored;
    for (const int64_t node : nodes) scored.push_back({score(level, node), node});
    std::ranges::sort(scored, [](const Scored& a, const Scored& b) {
      const bool number = a.first == a.first;
      if (number != (b.first == b.first)) return number;
      return number && a.first != b.first ? a.first > b.first : a.second > b.second;
    });
    std::vector<int64_t> chosen;
    for (const Scored& x : scored) chosen.push_back(x.second);
    chosen.resize(static_cast<size_t>(std::min(count, std::ssize(nodes))));
    return chosen;
  };
  std::vector<int64_t> nodes;
  for (int64_t node = 0; node < complete.back(); ++node) nodes.push_back(node);
  for (int64_t level = levels - 1; level > 0; --level) {
    if (std::ssize(nodes) > beam) nodes = best(level, nodes, beam);
    std::vector<int64_t> below;
    for (const int64_t node : nodes) {
      for (int64_t e = 0; e < radix; ++e) below.push_back(node * radix + e);
    }
    const auto l = static_cast<size_t>(level);
    for (int64_t node = complete[l] * radix; node < complete[l - 1]; ++node) below.push_back(node);
    nodes = below;
  }
  result.choice.blocks = best(0, nodes, kept + 1);
  if (std::ssize(result.choice.blocks) > kept) {
    result.choice.runner_up = result.choice.blocks.back();
    result.choice.blocks.pop_back();
  }
  std::ranges::sort(result.choice.blocks);
  return result;
}

/// log G of the chosen blocks, from their scores and the runner-up's.
template <class T>
std::vector<T> log_gates(const std::vector<T>& z, const T& runner_up, double strength,
                         const T& width) {
  using std::log;
  std::vector<T> gates;
  for (const T& x : z) {
    const T u = (x - runner_up) / width;
    const T clipped = real_part(u) <= 0 ? T(0) : real_part(u) >= 1 ? T(1) : u;
    gates.push_back(log(1.0 - strength + strength * clipped));
  }
  return gates;
}

/// mean_h softmax_b(block_lse[h, b]) of one row, block_lse [heads, count].
inline std::vector<double> gate_target(const std::vector<double>& block_lse, int64_t count) {
  std::vector<double> target(static_cast<size_t>(count));
  const auto heads = static_cast<int64_t>(block_lse.size()) / count;
  for (int64_t h = 0; h < heads; ++h) {
    const std::vector<double> of_head = row_of(block_lse, h, count);
    const double lse = log_sum_exp(of_head);
    for (size_t b = 0; b < target.size(); ++b) {
      target[b] += std::exp(of_head[b] - lse) / static_cast<double>(heads);
    }
  }
  return target;
}

/// The three losses of one row without their coefficients: KL, entropy, squared log-sum-exp.
template <class T>
std::vector<T> gate_losses(const std::vector<T>& z, const std::vector<double>& target) {
  using std::exp;
  const T lse = log_sum_exp(z);
  std::vector<T> losses{T(0), T(0), lse * lse};
  for (size_t b = 0; b < z.size(); ++b) {
    const T log_p = z[b] - lse;
    if (target[b] > 0) losses[0] += target[b] * (std::log(target[b]) - log_p);
    losses[1] -= exp(log_p) * log_p;
  }
  return losses;
}

}  // namespace tessera::reference
