// Different ways to the same DGSA: kernels against the definition, a halo, a prefix, block masses.
// The number in a test's name is that of the property in docs/dgsa.md.

#include <gtest/gtest.h>

#include "kernels/attention.h"
#include "tests/reference/dgsa.h"
#include "tests/support/compare.h"
#include "tests/support/dgsa_layer.h"

namespace tessera {
namespace {

using reference::Dgsa;
using support::DgsaLayer;
using support::Tensor;

std::vector<std::vector<double>> inputs_of(const DgsaLayer& layer) {
  std::vector<std::vector<double>> in;
  for (const Tensor& x : layer.in) in.push_back(support::to_doubles(x));
  return in;
}

size_t flat(int64_t row, int64_t columns, int64_t column) {
  return static_cast<size_t>(row * columns + column);
}

/// One local group: window and sink tokens.
struct Local {
  Local(int64_t tokens, int64_t heads_of_group, int64_t dim)
      : segments({tokens}, 16),
        heads(heads_of_group),
        d(dim),
        q(support::random_tensor(DType::kF32, {tokens, heads, d}, 1)),
        k(support::random_tensor(DType::kF32, {tokens, 1, d}, 2)),
        v(support::random_tensor(DType::kF32, {tokens, 1, d}, 3)),
        o(DType::kF32, {tokens, heads, d}),
        lse(DType::kF32, {heads, tokens}) {}

  void forward(Stream& stream, int64_t window, int64_t sink_tokens) {
    attention_forward(stream, {.o = o.view(),
                               .lse = lse.view(),
                               .q = q.view(),
                               .k = k.view(),
                               .v = v.view(),
                               .grid = segments.grid(),
                               .groups = groups,
                               .window = window,
                               .sink_tokens = sink_tokens,
                               .scale = 1 / std::sqrt(static_cast<float>(d))});
  }
  reference::AttentionShape shape() const {
    return {.heads = heads, .kv_heads = 1, .d = d, .scale = 1 / std::sqrt(static_cast<double>(d))};
  }
  reference::AttentionInput<double> input() const {
    return {support::to_doubles(q), support::to_doubles(k), support::to_doubles(v), {}};
  }

  support::Segments segments;
  int64_t heads;
  int64_t d;
  Tensor q;
  Tensor k;
  Tensor v;
  Tensor o;
  Tensor lse;
  std::vector<int32_t> groups{0};
};

TEST(DgsaConsistency, P1AnUnlimitedWindowIsFullCausalAttention) {
  Stream stream{support::device(), 2};
  Local local(90, 2, 8);
  local.forward(stream, 90, 0);
  const auto full =
      reference::attention(local.segments, local.shape(), local.input(),
                           [](int64_t, int64_t, int64_t) { return std::optional<double>(0); });
  support::expect_close(local.o.view(), full.o, 1e-11, "o");
  support::expect_close(local.lse.view(), full.lse, 1e-11, "lse");
}

TEST(DgsaConsistency, P3BackwardOfAWindowWithSinksIsTheGradient) {
  Stream stream{support::device(), 2};
  Local local(90, 2, 8);
  local.forward(stream, 19, 2);
  const Tensor d_o = support::random_tensor(DType::kF32, local.o.shape(), 4);
  const Tensor dq(DType::kF32, local.q.shape());
  const Tensor dk(DType::kF32, local.k.shape());
  const Tensor dv(DType::kF32, local.v.shape());
  const Tensor delta(DType::kF32, local.lse.shape());
  attention_backward(stream, {.dq = dq.view(),
                              .dk = dk.view(),
                              .dv = dv.view(),
                              .delta = delta.view(),
                              .d_o = d_o.view(),
                              .o = local.o.view(),
                              .lse = local.lse.view(),
                              .q = local.q.view(),
                              .k = local.k.view(),
                              .v = local.v.view(),
                              .grid = local.segments.grid(),
                              .groups = local.groups,
                              .window = 19,
                              .sink_tokens = 2,
                              .scale = 1 / std::sqrt(8.0f)});
  const auto exact = reference::attention_gradient(
      local.segments, local.shape(), local.input(), support::to_doubles(d_o),
      reference::window_gate<double>(local.segments, 19, 2));
  support::expect_close(dq.view(), exact.dq, 1e-11, "dq");
  support::expect_close(dk.view(), exact.dk, 1e-11, "dk");
  support::expect_close(dv.view(), exact.dv, 1e-11, "dv");
}

TEST(DgsaConsistency, P6aTiledForwardIsTheDefinition) {
  Stream stream{support::device(), 2};
  for (const int64_t gate_keys : {1, 2}) {
    DgsaLayer::Config config;
    config.gate_keys = gate_keys;
    DgsaLayer layer(config, 11);
    layer.forward(stream);
    const Dgsa<double> exact(layer, inputs_of(layer));
    support::expect_close(layer.o.view(), exact.out.o, 1e-11, "o");
    support::expect_close(layer.lse.view(), exact.out.lse, 1e-11, "lse");
  }
}

TEST(DgsaConsistency, P6bTwoKernelsWithoutAtomicsAreTheBackward) {
  Stream stream{support::device(), 2};
  DgsaLayer::Config config;
  config.kl = config.entropy = config.z = 0;
  DgsaLayer layer(config, 11);
  layer.forward(stream);
  const Tensor d_o = support::random_tensor(DType::kF32, layer.o.shape(), 9);
  layer.backward(stream, d_o);
  const Dgsa<double> exact(layer, inputs_of(layer));
  const auto gradient = reference::attention_gradient(layer.segments, exact.shape, exact.x,
                                                      support::to_doubles(d_o), exact.log_gate());
  support::expect_close(layer.gradients[DgsaLayer::kV].view(), gradient.dv, 1e-11, "dv");
  support::expect_close(layer.gradients[DgsaLayer::kSinkLogits].view(), gradient.dsink_logits,
                        1e-11, "dsink_logits");
  const auto& c = layer.c;
  for (int64_t i = 0; i < c.tokens; ++i) {
    const auto of_block = [&](int64_t block) {
      double sum = 0;
      for (int64_t j = block * c.block; j < (block + 1) * c.block && j <= i; ++j) {
        for (int64_t h = 0; h < c.heads; ++h) {
          sum += gradient.ds[flat(h, c.tokens, i)][static_cast<size_t>(j)];
        }
      }
      return sum;
    };
    // 6c: over everything that a query sees, the sink too, the gradient of the logits sums to 0.
    double total = 0;
    for (int64_t b = 0; b <= layer.segments.own_block(i); ++b) {
      const bool forced =
          b < c.rule.sink_blocks || b > layer.segments.own_block(i) - c.rule.window_blocks;
      if (forced) total += of_block(b);
    }
    for (int64_t s = 0; s < layer.selection.count(0, i); ++s) {
      const double found = layer.dlog_gate.as<float>()[flat(i, c.rule.kept, s)];
      const int64_t block = layer.selection.row_of_blocks(0, i)[static_cast<size_t>(s)];
      EXPECT_NEAR(found, of_block(block), 2e-6);
      total += found;
    }
    for (int64_t h = 0; h < c.heads; ++h) {
      const double sink_weight = std::exp(exact.x.sink_logits[static_cast<size_t>(h)] -
                                          exact.out.lse[flat(h, c.tokens, i)]);
      for (int64_t e = 0; e < c.d; ++e) {
        const size_t at = flat(i * c.heads + h, c.d, e);
        total -= sink_weight * static_cast<double>(d_o.as<float>()[at]) * exact.out.o[at];
      }
    }
    EXPECT_NEAR(total, 0, 5e-6) << "6c, token " << i;
  }
}

TEST(DgsaConsistency, P7AHaloOfTheWindowIsEnoughForALocalGroup) {
  constexpr int64_t kTokens = 96;
  constexpr int64_t kRanks = 4;
  constexpr int64_t kWindow = 9;
  constexpr int64_t kSinks = 2;
  Stream stream{support::device()};
  Local whole(kTokens, 2, 8);
  whole.forward(stream, kWindow, kSinks);
  const int64_t own = kTokens / kRanks;
  for (int64_t rank = 1; rank < kRanks; ++rank) {
    // Sinks, the last window - 1 tokens of the rank before, its own.
    const int64_t before = kSinks + kWindow - 1;
    Local part(before + own, 2, 8);
    for (int64_t i = 0; i < before + own; ++i) {
      const int64_t from = i < kSinks ? i : rank * own - (kWindow - 1) + i - kSinks;
      for (auto [to, source, width] :
           {std::tuple{&part.q, &whole.q, int64_t{16}}, std::tuple{&part.k, &whole.k, int64_t{8}},
            std::tuple{&part.v, &whole.v, int64_t{8}}}) {
        const auto values = source->as<float>().subspan(flat(from, width, 0));
        std::copy_n(values.begin(), width, to->as<float>().subspan(flat(i, width, 0)).begin());
      }
    }
    part.forward(stream, kWindow, kSinks);
    const auto expected = support::to_doubles(whole.o.view().rows(rank * own, own));
    support::expect_close(part.o.view().rows(before, own), expected, 1e-12, "o");
  }
}

TEST(DgsaConsistency, P8EveryPrefixGivesTheSameLastToken) {
  // Decoding: a token is computed when only those before it exist.
  Stream stream{support::device()};
  DgsaLayer::Config config;
  config.gate_keys = 2;
  DgsaLayer whole(config, 17);
  whole.forward(stream);
  for (int64_t tokens = 1; tokens <= config.tokens; ++tokens) {
    DgsaLayer::Config shorter = config;
    shorter.tokens = tokens;
    DgsaLayer prefix(shorter, 17);
    for (size_t input = 0; input < DgsaLayer::kInputs; ++input) {
      const Tensor& x = prefix.in[input];
      std::copy_n(whole.in[input].as<float>().begin(), x.view().elements(), x.as<float>().begin());
    }
    prefix.forward(stream);
    const int64_t last = tokens - 1;
    EXPECT_EQ(prefix.selection.count(0, last), whole.selection.count(0, last));
    EXPECT_TRUE(std::ranges::equal(prefix.selection.row_of_blocks(0, last),
                                   whole.selection.row_of_blocks(0, last)));
    EXPECT_TRUE(std::ranges::equal(prefix.selection.row_of_scores(0, last),
                                   whole.selection.row_of_scores(0, last)));
    support::expect_close(prefix.o.view().rows(last, 1),
                          support::to_doubles(whole.o.view().rows(last, 1)), 1e-12, "o");
  }
}

TEST(DgsaConsistency, P10BlockMassesBoundTheErrorOfWhatIsDropped) {
  Stream stream{support::device()};
  DgsaLayer::Config config;
  config.tokens = 128;
  config.strength = 0;
  config.sink_logits = false;
  config.rule = {.sink_blocks = 0, .window_blocks = 1, .kept = 100};
  DgsaLayer full(config, 19);
  full.forward(stream);
  config.rule.kept = 2;
  DgsaLayer sparse(config, 19);
  sparse.forward(stream);
  double largest = 0;
  for (const float v : full.in[DgsaLayer::kV].as<float>()) {
    largest = std::max<double>(largest, std::abs(v));
  }
  double mean_kept = 0;
  const Dgsa<double> exact(full, inputs_of(full));
  for (int64_t i = 0; i < config.tokens; ++i) {
    for (int64_t h = 0; h < config.heads; ++h) {
      const double lse = full.lse.as<float>()[flat(h, config.tokens, i)];
      const auto mass = [&](const DgsaLayer& layer, int64_t s) {
        const auto row = flat(i * config.heads + h, layer.c.rule.kept, s);
        return std::exp(static_cast<double>(layer.block_lse.as<float>()[row]) - lse);
      };
      const int64_t own = full.segments.own_block(i);
      double all = std::exp(exact.block_lse(h, i, own) - lse);
      double kept = all;
      for (int64_t s = 0; s < full.selection.count(0, i); ++s) all += mass(full, s);
      for (int64_t s = 0; s < sparse.selection.count(0, i); ++s) kept += mass(sparse, s);
      EXPECT_NEAR(all, 1, 2e-6) << "the blocks share the softmax";
      EXPECT_NEAR(std::log(kept) + lse, sparse.lse.as<float>()[flat(h, config.tokens, i)], 5e-6);
      for (int64_t e = 0; e < config.d; ++e) {
        const size_t at = flat(i * config.heads + h, config.d, e);
        EXPECT_LE(std::abs(full.o.as<float>()[at] - sparse.o.as<float>()[at]),
                  2 * (1 - kept) * largest + 1e-5);
      }
      mean_kept += kept / static_cast<double>(config.tokens * config.heads);
    }
  }
  EXPECT_GT(mean_kept, 0.3);
  EXPECT_LT(mean_kept, 0.99);
}

}  // namespace
}  // namespace tessera
