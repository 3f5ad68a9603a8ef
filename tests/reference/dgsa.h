#pragma once

#include <cmath>
#include <vector>

#include "tests/reference/attention.h"
#include "tests/reference/gate.h"
#include "tests/reference/rope.h"
#include "tests/support/dgsa_layer.h"

namespace tessera::reference {

/// support::DgsaLayer by the definition, in T = double or std::complex<double>, with the choices of
/// the layer (they are held, as a gradient wants them).
template <class T>
struct Dgsa {
  using Layer = support::DgsaLayer;

  Dgsa(const Layer& of, const std::vector<std::vector<T>>& inputs)
      : layer(of),
        shape{.heads = of.c.heads,
              .kv_heads = 1,
              .d = of.c.d,
              .scale = 1 / std::sqrt(static_cast<double>(of.c.d))} {
    const auto positions = support::to_doubles(of.segments.grid().positions);
    x.q = rope(inputs[Layer::kQ0], positions, static_cast<size_t>(of.c.heads), 10000);
    x.k = rope(inputs[Layer::kK0], positions, 1, 10000);
    x.v = inputs[Layer::kV];
    if (of.c.sink_logits) x.sink_logits = inputs[Layer::kSinkLogits];
    find_gates(inputs);
    out = attention(of.segments, shape, x, log_gate());
  }

  /// What attention() wants to know.
  auto log_gate() const {
    return [this](int64_t, int64_t i, int64_t j) -> std::optional<T> {
      const int64_t block = layer.segments.own_block(j);
      const int64_t own = layer.segments.own_block(i);
      const bool forced =
          block < layer.c.rule.sink_blocks || block > own - layer.c.rule.window_blocks;
      if (forced) return T(0);
      const auto blocks = layer.selection.row_of_blocks(0, i);
      for (size_t s = 0; s < gates[static_cast<size_t>(i)].size(); ++s) {
        if (blocks[s] == block) return gates[static_cast<size_t>(i)][s];
      }
      return std::nullopt;
    };
  }

  /// log sum_{j in block} exp(scale q.k) of head h and token i, without the gate.
  T block_lse(int64_t head, int64_t i, int64_t block) const {
    std::vector<T> logits;
    for (int64_t j = block * layer.c.block; j < (block + 1) * layer.c.block && j <= i; ++j) {
      T product = 0;
      for (int64_t e = 0; e < shape.d; ++e) {
        product += x.q[at(i, head, shape.heads, shape.d, e)] * x.k[at(j, 0, 1, shape.d, e)];
      }
      logits.push_back(shape.scale * product);
    }
    return log_sum_exp(logits);
  }

  /// sum(d_o * o) + the auxiliary losses with the targets given.
  T loss(const std::vector<double>& d_o, const std::vector<std::vector<double>>& targets) const {
    T sum = weighted_sum(d_o, out.o);
    double rows = 0;
    for (const auto& row : scores) rows += row.size() >= 2;
    const std::vector<double> coefficients{layer.c.kl / rows, layer.c.entropy / rows,
                                           layer.c.z / rows};
    for (size_t i = 0; i < scores.size(); ++i) {
      if (scores[i].size() >= 2) {
        sum += weighted_sum(coefficients, gate_losses(scores[i], targets[i]));
      }
    }
    return sum;
  }

  const Layer& layer;
  AttentionShape shape;
  AttentionInput<T> x;
  std::vector<std::vector<T>> scores;  ///< [tokens][chosen]
  std::vector<std::vector<T>> gates;   ///< [tokens][chosen]: log G
  AttentionOutput<T> out;

 private:
  void find_gates(const std::vector<std::vector<T>>& inputs) {
    const auto& c = layer.c;
    const auto pooled =
        gate_pool(layer.segments, inputs[Layer::kK0], inputs[Layer::kPool], 1, c.gate_keys);
    const auto qt = product(inputs[Layer::kQ0], inputs[Layer::kQueryWeight], c.heads * c.d);
    const auto kt = product(pooled.kbar, inputs[Layer::kKeyWeight], c.d);
    for (int64_t i = 0; i < c.tokens; ++i) {
      const auto z = gate_scores(layer.segments, qt, kt, 0, i, c.gate_dim, c.gate_keys);
      const auto blocks = layer.selection.row_of_blocks(0, i);
      scores.emplace_back();
      for (int64_t s = 0; s < layer.selection.count(0, i); ++s) {
        scores.back().push_back(z[static_cast<size_t>(blocks[static_cast<size_t>(s)])]);
      }
      const int32_t runner_up = blocks.back();
      gates.push_back(runner_up < 0
                          ? std::vector<T>(scores.back().size(), T(0))
                          : log_gates(scores.back(), z[static_cast<size_t>(runner_up)],
                                      static_cast<double>(c.strength), inputs[Layer::kWidth][0]));
    }
  }
  /// a [m, k] b [n, k]^T.
  static std::vector<T> product(const std::vector<T>& a, const std::vector<T>& b, int64_t k) {
    std::vector<T> result;
    for (int64_t i = 0; i < static_cast<int64_t>(a.size()) / k; ++i) {
      for (int64_t j = 0; j < static_cast<int64_t>(b.size()) / k; ++j) {
        result.push_back(dot(row_of(a, i, k), row_of(b, j, k)));
      }
    }
    return result;
  }
};

}  // namespace tessera::reference
