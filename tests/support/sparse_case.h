#pragma once

#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/sparse_attention.h"
#include "tests/reference/attention.h"
#include "tests/reference/complex_step.h"
#include "tests/reference/sparse_attention.h"
#include "tests/support/random_tensor.h"
#include "tests/support/segments.h"
#include "tests/support/selection.h"

namespace tessera::support {

/// A shape of sparse attention.
struct SparseCase {
  std::vector<int64_t> lengths;
  int64_t block;
  int64_t heads;
  int64_t kv_heads;
  int64_t d;
  BlockRule rule;
  double strength;
  bool sink_logits;
  DType dtype = DType::kF32;
};

/// Operands, choices and results of one case; the groups are all KV heads.
struct Sparse {
  explicit Sparse(const SparseCase& of)
      : c(of),
        segments(of.lengths, of.block),
        shape{of.heads, of.kv_heads, of.d, 1 / std::sqrt(static_cast<double>(of.d))},
        scores(segments, of.kv_heads, 9),
        q(random_tensor(of.dtype, {segments.tokens(), of.heads, of.d}, 1, 1.5)),
        k(random_tensor(of.dtype, {segments.tokens(), of.kv_heads, of.d}, 2)),
        v(random_tensor(of.dtype, {segments.tokens(), of.kv_heads, of.d}, 3)),
        d_o(random_tensor(of.dtype, {segments.tokens(), of.heads, of.d}, 4)),
        sink_logits(random_tensor(DType::kF32, {of.heads}, 5)),
        widths(filled(DType::kF32, {of.kv_heads}, 1.5)),
        groups(static_cast<size_t>(of.kv_heads)),
        o(filled(of.dtype, q.shape(), 77)),
        lse(filled(DType::kF32, {of.heads, segments.tokens()}, 77)),
        block_lse(filled(DType::kF32,
                         {of.kv_heads, segments.tokens(), of.heads / of.kv_heads, of.rule.kept},
                         77)),
        dq(filled(of.dtype, q.shape(), 77)),
        dk(filled(of.dtype, k.shape(), 77)),
        dv(filled(of.dtype, k.shape(), 77)),
        dlog_gate(filled(DType::kF32, {of.kv_heads, segments.tokens(), of.rule.kept}, 77)),
        delta(DType::kF32, {of.heads, segments.tokens()}),
        dsink_logits(filled(DType::kF32, {of.heads}, 1)) {
    std::iota(groups.begin(), groups.end(), 0);
  }

  reference::Attended attended() const { return {scores, c.rule, c.strength, to_doubles(widths)}; }
  /// Runs forward and backward with the choices that follow from the scores.
  void run(int threads = 1, bool backward = true) const {
    const reference::Attended chosen = attended();
    const Selection owner = reference::selection_of(scores, chosen);
    const BlockSelection selection = owner.view();
    const reference::Lists lists(scores, chosen);
    Stream stream(device(), threads);
    sparse_attention_forward(stream, forward(selection, lists.view()));
    if (backward) sparse_attention_backward(stream, gradient(selection, lists.view()));
  }
  SparseAttentionForward forward(const BlockSelection& selection, const BlockLists& lists) const {
    return {.o = o,
            .lse = lse,
            .q = q,
            .k = k,
            .v = v,
            .grid = segments.grid(),
            .groups = groups,
            .rule = c.rule,
            .selection = selection,
            .lists = lists,
            .ramp = {static_cast<float>(c.strength), widths},
            .scale = static_cast<float>(shape.scale),
            .sink_logits = c.sink_logits ? sink_logits.view() : TensorView(),
            .block_lse = block_lse};
  }
  SparseAttentionBackward gradient(const BlockSelection& selection, const BlockLists& lists) const {
    return {.dq = dq,
            .dk = dk,
            .dv = dv,
            .dlog_gate = dlog_gate,
            .delta = delta,
            .d_o = d_o,
            .o = o,
            .lse = lse,
            .q = q,
            .k = k,
            .v = v,
            .grid = segments.grid(),
            .groups = groups,
            .rule = c.rule,
            .selection = selection,
            .lists = lists,
            .ramp = {static_cast<float>(c.strength), widths},
            .scale = static_cast<float>(shape.scale),
            .sink_logits = c.sink_logits ? sink_logits.view() : TensorView(),
            .dsink_logits = c.sink_logits ? dsink_logits.view() : TensorView()};
  }
  template <class T>
  reference::AttentionInput<T> input() const {
    const auto numbers = [](const Tensor& x) { return reference::as<T>(to_doubles(x)); };
    return {numbers(q), numbers(k), numbers(v),
            c.sink_logits ? numbers(sink_logits) : std::vector<T>()};
  }
  std::vector<double> added_to_sink_logits() const {
    std::vector<double> added = to_doubles(dsink_logits);
    for (double& x : added) x -= 1;
    return added;
  }

  SparseCase c;
  Segments segments;
  reference::AttentionShape shape;
  reference::Scores scores;
  Tensor q, k, v, d_o, sink_logits, widths;
  std::vector<int32_t> groups;
  Tensor o, lse, block_lse, dq, dk, dv, dlog_gate, delta, dsink_logits;
};

/// sum_{keys of the block} ds over the heads of a group, from the reference.
inline double ds_of_block(const Sparse& x, const reference::AttentionGradient& gradient,
                          int64_t group, int64_t i, int64_t block) {
  double total = 0;
  const int64_t group_heads = x.c.heads / x.c.kv_heads;
  for (int64_t head = group * group_heads; head < (group + 1) * group_heads; ++head) {
    const auto& ds = gradient.ds[static_cast<size_t>(head * x.segments.tokens() + i)];
    for (size_t key = 0; key < ds.size(); ++key) {
      if (static_cast<int64_t>(key) / x.c.block == block) total += ds[key];
    }
  }
  return total;
}

inline std::vector<double> expected_dlog_gate(const Sparse& x, const reference::Attended& attended,
                                              const reference::AttentionGradient& gradient) {
  std::vector<double> expected;
  for (int64_t c = 0; c < x.c.kv_heads; ++c) {
    for (int64_t i = 0; i < x.segments.tokens(); ++i) {
      const auto& blocks = attended.choices[attended.row(c, i)].blocks;
      for (size_t s = 0; s < static_cast<size_t>(x.c.rule.kept); ++s) {
        expected.push_back(s < blocks.size() ? ds_of_block(x, gradient, c, i, blocks[s]) : 0);
      }
    }
  }
  return expected;
}

/// block_lse where the kernel must write it, 77 elsewhere.
inline std::vector<double> expected_block_lse(const Sparse& x,
                                              const reference::Attended& attended) {
  const auto input = x.input<double>();
  const int64_t group_heads = x.c.heads / x.c.kv_heads;
  const auto no_gate = [](int64_t, int64_t, int64_t) -> std::optional<double> { return 0; };
  std::vector<double> expected;
  for (int64_t c = 0; c < x.c.kv_heads; ++c) {
    for (int64_t i = 0; i < x.segments.tokens(); ++i) {
      for (int64_t h = 0; h < group_heads; ++h) {
        const auto scores = reference::attention_scores(x.segments, x.shape, input,
                                                        c * group_heads + h, i, no_gate);
        std::vector<double> row(static_cast<size_t>(x.c.rule.kept), 77);
        const auto& blocks = attended.choices[attended.row(c, i)].blocks;
        for (size_t s = 0; s < blocks.size(); ++s) {
          std::vector<double> of_block;
          for (int64_t j = blocks[s] * x.c.block; j < (blocks[s] + 1) * x.c.block; ++j) {
            of_block.push_back(*scores[static_cast<size_t>(j)]);
          }
          row[s] = reference::log_sum_exp(of_block);
        }
        expected.insert(expected.end(), row.begin(), row.end());
      }
    }
  }
  return expected;
}

}  // namespace tessera::support
