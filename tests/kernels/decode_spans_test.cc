// decode_attention against its definition, over spans of any length in any order.

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/decode_attention.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::Tensor;

struct Case {
  int64_t rows;  ///< of the cache
  int64_t kv_heads;
  int64_t group_heads;
  int64_t d;
  std::vector<int64_t> lengths;  ///< of the spans, from the cache's end on, a row between two
  bool gates;
  bool sink_logits;
  int64_t sequences = 1;
  bool same_lists = false;  ///< one for all groups
};

/// Operands, and what the definition makes of them.
struct Decoding {
  Decoding(const Case& of, DType dtype)
      : c(of),
        heads(of.kv_heads * of.group_heads),
        q(support::random_tensor(dtype, {of.sequences, heads, of.d}, 1, 1.5)),
        k(support::random_tensor(dtype, {groups(), of.sequences, of.rows, of.d}, 2)),
        v(support::random_tensor(dtype, {groups(), of.sequences, of.rows, of.d}, 3)),
        sink_logits(support::random_tensor(DType::kF32, {heads}, 4)),
        spans(DType::kI32, {lists(), of.sequences, most(), 2}),
        log_gates(support::random_tensor(DType::kF32, {lists(), of.sequences, most()}, 5)),
        counts(DType::kI32, {lists(), of.sequences}),
        o(support::filled(dtype, {of.sequences, heads, of.d}, 77)),
        lse(support::filled(DType::kF32, {of.sequences, heads}, 77)) {
    for (int64_t list = 0; list < lists() * of.sequences; ++list) {
      int64_t end = of.rows;
      const int64_t used = spans_of(list);
      counts.as<int32_t>()[static_cast<size_t>(list)] = static_cast<int32_t>(used);
      for (int64_t s = 0; s < used; ++s) {
        const int64_t length = of.lengths[static_cast<size_t>(s)];
        const auto at = static_cast<size_t>((list * most() + s) * 2);
        spans.as<int32_t>()[at] = static_cast<int32_t>(end - length);
        spans.as<int32_t>()[at + 1] = static_cast<int32_t>(length);
        end -= length + 1;
      }
    }
    if (of.kv_heads > 1) of_groups = {static_cast<int32_t>(of.kv_heads - 1), 0};
  }

  int64_t groups() const { return std::min<int64_t>(c.kv_heads, 2); }
  int64_t lists() const { return c.same_lists ? 1 : groups(); }
  int64_t most() const { return static_cast<int64_t>(c.lengths.size()) + 1; }
  /// Each list has fewer than the one before.
  int64_t spans_of(int64_t list) const {
    return std::max<int64_t>(1, static_cast<int64_t>(c.lengths.size()) / (list + 1));
  }

  void run() const {
    // A workspace that has no room for all sequences of the last case at once.
    Stream stream(support::device(), 2, int64_t{128} << 10);
    decode_attention(stream, {.o = o,
                              .lse = lse,
                              .q = q,
                              .k = k,
                              .v = v,
                              .spans = spans,
                              .log_gates = c.gates ? log_gates.view() : TensorView(),
                              .counts = counts,
                              .groups = of_groups,
                              .kv_heads = c.kv_heads,
                              .scale = 0.2f,
                              .sink_logits = c.sink_logits ? sink_logits.view() : TensorView()});
  }

  /// o of a head of sequence `s` over the spans of the g-th group, and lse behind it.
  std::vector<double> expected(int64_t g, int64_t s, int64_t head) const {
    const std::vector<double> queries = support::to_doubles(q);
    const std::vector<double> keys = support::to_doubles(k);
    const std::vector<double> values = support::to_doubles(v);
    const auto query = static_cast<size_t>((s * heads + head) * c.d);
    const int64_t place = g * c.sequences + s;
    const int64_t list = c.same_lists ? s : place;
    std::vector<double> sums(static_cast<size_t>(c.d), 0);
    double total = c.sink_logits ? std::exp(sink_logits.as<float>()[static_cast<size_t>(head)]) : 0;
    for (int64_t i = 0; i < spans_of(list); ++i) {
      const auto of_span = static_cast<size_t>(list * most() + i);
      const int64_t first = spans.as<int32_t>()[2 * of_span];
      for (int64_t row = first; row < first + spans.as<int32_t>()[2 * of_span + 1]; ++row) {
        const auto key = static_cast<size_t>((place * c.rows + row) * c.d);
        double score = 0;
        for (size_t e = 0; e < sums.size(); ++e) score += queries[query + e] * keys[key + e];
        const double gate = c.gates ? log_gates.as<float>()[of_span] : 0;
        const double weight = std::exp(static_cast<double>(0.2f) * score + gate);
        total += weight;
        for (size_t e = 0; e < sums.size(); ++e) sums[e] += weight * values[key + e];
      }
    }
    for (double& x : sums) x /= total;
    sums.push_back(std::log(total));
    return sums;
  }

  void expect(double tolerance, const std::string& what) const {
    std::vector<double> all_o(static_cast<size_t>(c.sequences * heads * c.d), 77);
    std::vector<double> all_lse(static_cast<size_t>(c.sequences * heads), 77);
    for (int64_t g = 0; g < groups(); ++g) {
      const int64_t first = of_groups[static_cast<size_t>(g)] * c.group_heads;
      for (int64_t s = 0; s < c.sequences; ++s) {
        for (int64_t head = first; head < first + c.group_heads; ++head) {
          const std::vector<double> of_head = expected(g, s, head);
          std::copy_n(of_head.begin(), c.d, all_o.begin() + (s * heads + head) * c.d);
          all_lse[static_cast<size_t>(s * heads + head)] = of_head.back();
        }
      }
    }
    support::expect_close(o, all_o, tolerance, what + "o");
    support::expect_close(lse, all_lse, 1e-12, what + "lse");
  }

  Case c;
  int64_t heads;
  Tensor q, k, v, sink_logits, spans, log_gates, counts, o, lse;
  std::vector<int32_t> of_groups{0};
};

/// `count` spans of lengths 1 to 90.
std::vector<int64_t> many(int64_t count) {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < count; ++i) lengths.push_back(1 + i * 37 % 90);
  return lengths;
}

TEST(DecodeSpans, AgreeWithTheDefinition) {
  const std::vector<Case> cases{
      {40, 1, 1, 8, {1}, false, false},
      {700, 3, 4, 128, {64, 64, 3, 64, 64, 1, 64, 200}, true, true},
      {3000, 1, 2, 16, many(45), true, false},        // more spans than lanes, several parts
      {1100, 2, 20, 40, {1000, 5, 30}, false, true},  // more heads than a block has rows
      {300, 1, 3, 256, {70, 64, 17}, true, true},
      {5000, 2, 1, 24, {3}, false, false},  // most parts have nothing to do
      {200, 2, 2, 32, {64, 30, 7, 1}, true, true, 5},
      {1000, 2, 8, 64, {700, 64, 64}, false, true, 5, true},  // in several launches
  };
  for (const DType dtype : support::dtypes()) {
    for (const Case& c : cases) {
      const Decoding x(c, dtype);
      x.run();
      x.expect(dtype == DType::kBF16 ? 2e-5 : 1e-12,
               concat(name_of(dtype), " d ", c.d, " rows ", c.rows, ": "));
    }
  }
}

}  // namespace
}  // namespace tessera
