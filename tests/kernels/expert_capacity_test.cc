#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "kernels/grouped_matmul.h"
#include "kernels/permute_tokens.h"
#include "kernels/swiglu.h"
#include "tests/reference/activation.h"
#include "tests/reference/complex_step.h"
#include "tests/reference/matmul.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/tolerance.h"

// The capacity of SortByExpert, and what the other kernels of kernels/permute_tokens.h make of the
// pairs that it drops.

namespace tessera {
namespace {

using reference::Complex;
using support::expect_close;
using support::expect_error;
using support::filled;
using support::from_ints;
using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

std::vector<int32_t> ints(const Tensor& x) {
  const auto values = x.as<int32_t>();
  return {values.begin(), values.end()};
}

struct Sorted {
  Tensor row_of, source_of, offsets, dropped;
  TensorView sources() const { return source_of.view().rows(0, offsets.as<int32_t>().back()); }
};

/// `dropped` starts at 100; rows of nobody stay -7.
Sorted sort(const TensorView& experts, int64_t number, int64_t capacity) {
  Sorted out{Tensor(DType::kI32, experts.shape()), filled(DType::kI32, {experts.elements()}, -7),
             Tensor(DType::kI32, {number + 1}), filled(DType::kF32, {1}, 100)};
  Stream stream(support::device());
  sort_by_expert(stream, {.row_of = out.row_of,
                          .source_of = out.source_of,
                          .offsets = out.offsets,
                          .experts = experts,
                          .capacity = capacity,
                          .dropped = out.dropped});
  return out;
}

// Seven tokens with two of five experts each. With room for two pairs, experts 2, 0 and 1 are full
// after tokens 1, 2 and 5; tokens 3 and 4 lose both their experts; expert 4 gets nobody.
constexpr int64_t kTokens = 7;
constexpr int64_t kSlots = 2;
constexpr int64_t kExperts = 5;
constexpr int64_t kCapacity = 2;
constexpr int64_t kHidden = 6;
constexpr int64_t kWidth = 4;
const std::vector<int32_t> kChosen{2, 0, 2, 1, 0, 2, 2, 0, 2, 0, 1, 3, 3, 1};
const std::vector<bool> kKept{true,  true,  true,  true, true, false, false,
                              false, false, false, true, true, true,  false};

TensorView as_choice(const Tensor& pairs) {
  return pairs.view().reshape({pairs.view().elements() / kSlots, kSlots});
}

/// Two of `experts` per token, the low ones more often.
Tensor crowded(int64_t tokens, int32_t experts) {
  Tensor chosen = support::random_ints({tokens * 2}, 5, 0, experts);
  const auto e = chosen.as<int32_t>();
  for (size_t i = 0; i < e.size(); i += 2) {
    e[i] = std::min(e[i], e[i + 1]);
    e[i + 1] = (e[i] + 1 + e[i + 1] % (experts - 1)) % experts;
  }
  return chosen;
}

TEST(ExpertCapacity, KeepsTheFirstTokensOfAnExpert) {
  const Tensor experts = from_ints(kChosen);
  const Sorted sorted = sort(as_choice(experts), kExperts, kCapacity);
  EXPECT_EQ(ints(sorted.offsets), (std::vector<int32_t>{0, 2, 4, 6, 8, 8}));
  EXPECT_EQ(ints(sorted.row_of),
            (std::vector<int32_t>{4, 0, 5, 2, 1, -1, -1, -1, -1, -1, 3, 6, 7, -1}));
  EXPECT_EQ(ints(sorted.source_of),
            (std::vector<int32_t>{1, 4, 3, 10, 0, 2, 11, 12, -7, -7, -7, -7, -7, -7}));
  EXPECT_EQ(to_doubles(sorted.dropped), std::vector<double>{106});
}

TEST(ExpertCapacity, AgreesWithCuttingTheWholeOrder) {
  constexpr int32_t kNumber = 13;
  const Tensor pairs = crowded(501, kNumber);
  const Sorted whole = sort(as_choice(pairs), kNumber, 0);
  EXPECT_EQ(to_doubles(whole.dropped), std::vector<double>{100});
  const std::vector<int32_t> starts = ints(whole.offsets);
  for (const int64_t capacity : {int64_t{1}, int64_t{60}, int64_t{501}, int64_t{1} << 40}) {
    SCOPED_TRACE(capacity);
    std::vector<int32_t> sources;
    std::vector<int32_t> rows(1002, -1);
    std::vector<int32_t> offsets{0};
    for (size_t e = 0; e < kNumber; ++e) {
      const auto kept = std::min<int64_t>(starts[e + 1] - starts[e], capacity);
      for (int64_t i = 0; i < kept; ++i) {
        const int32_t pair = ints(whole.source_of)[static_cast<size_t>(starts[e] + i)];
        rows[static_cast<size_t>(pair)] = static_cast<int32_t>(sources.size());
        sources.push_back(pair);
      }
      offsets.push_back(static_cast<int32_t>(sources.size()));
    }
    const auto dropped = 1002 - static_cast<double>(sources.size());
    EXPECT_EQ(dropped > 0, capacity < 501);
    sources.resize(1002, -7);
    const Sorted sorted = sort(as_choice(pairs), kNumber, capacity);
    EXPECT_EQ(ints(sorted.offsets), offsets);
    EXPECT_EQ(ints(sorted.source_of), sources);
    EXPECT_EQ(ints(sorted.row_of), rows);
    EXPECT_EQ(to_doubles(sorted.dropped), std::vector<double>{100 + dropped});
  }
}

// Pairs of one expert in several chunks of pairs: its room is used up in the middle of one.
TEST(ExpertCapacity, KeepsTheFirstOfManyPairs) {
  constexpr int64_t kMany = 3000;
  constexpr int32_t kRoom = 1700;
  std::vector<int32_t> chosen;
  for (int64_t t = 0; t < kMany; ++t) {
    chosen.push_back(1);
    chosen.push_back(t % 2 == 0 ? 0 : 2);
  }
  const Tensor pairs = from_ints(chosen);
  const Sorted sorted = sort(as_choice(pairs), 3, kRoom);
  EXPECT_EQ(ints(sorted.offsets), (std::vector<int32_t>{0, 1500, 3200, 4700}));
  EXPECT_EQ(to_doubles(sorted.dropped), std::vector<double>{100 + kMany - kRoom});
  const std::vector<int32_t> rows = ints(sorted.row_of);
  for (int32_t t = 0; t < kMany; ++t) {
    const auto at = static_cast<size_t>(2 * t);
    ASSERT_EQ(rows[at], t < kRoom ? 1500 + t : -1);
    ASSERT_EQ(rows[at + 1], t / 2 + (t % 2 == 0 ? 0 : 3200));
  }
}

TEST(ExpertCapacity, NeedNotCount) {
  Stream stream(support::device());
  const Tensor experts = from_ints(kChosen);
  const Tensor rows(DType::kI32, {kTokens, kSlots});
  const Tensor sources(DType::kI32, {kTokens * kSlots});
  const Tensor offsets(DType::kI32, {kExperts + 1});
  sort_by_expert(stream, {.row_of = rows,
                          .source_of = sources,
                          .offsets = offsets,
                          .experts = as_choice(experts),
                          .capacity = kCapacity});
  EXPECT_EQ(ints(offsets).back(), 8);
}

TEST(ExpertCapacity, GatherSumLeavesDroppedPairsOut) {
  Stream stream(support::device());
  const Tensor pairs = from_ints({1, -1, -1, 0, -1, -1});
  const Tensor x = support::from_doubles(DType::kF32, {2, 1}, std::vector<double>{1, 2});
  const Tensor base = support::from_doubles(DType::kF32, {3, 1}, std::vector<double>{10, 20, 30});
  const Tensor y = filled(DType::kF32, {3, 1}, 99);
  gather_sum(stream, {.y = y, .x = x, .row_of = as_choice(pairs)});
  EXPECT_EQ(to_doubles(y), (std::vector<double>{2, 1, 0}));
  gather_sum(stream, {.y = y, .x = x, .row_of = as_choice(pairs), .base = base});
  EXPECT_EQ(to_doubles(y), (std::vector<double>{12, 21, 30}));
  const Tensor none = filled(DType::kI32, {6}, -1);
  gather_sum(stream, {.y = y, .x = x.view().rows(0, 0), .row_of = as_choice(none), .base = base});
  EXPECT_EQ(to_doubles(y), to_doubles(base));
}

TEST(ExpertCapacity, PermutePairsGivesDroppedPairsZero) {
  Stream stream(support::device());
  const Tensor source_of = from_ints({2, 0});
  const Tensor x = support::from_doubles(DType::kF32, {2, 2}, std::vector<double>{10, 11, 12, 13});
  const Tensor rows = filled(DType::kF32, {2}, 99);
  const Tensor back = filled(DType::kF32, {2, 2}, 99);
  permute_pairs(stream, {.y = rows, .x = x, .source_of = source_of});
  EXPECT_EQ(to_doubles(rows), (std::vector<double>{12, 10}));
  permute_pairs(stream, {.y = back, .x = rows, .source_of = source_of, .inverse = true});
  EXPECT_EQ(to_doubles(back), (std::vector<double>{10, 0, 12, 0}));
  permute_pairs(stream, {.y = back,
                         .x = rows.view().rows(0, 0),
                         .source_of = source_of.view().rows(0, 0),
                         .inverse = true});
  EXPECT_EQ(to_doubles(back), std::vector<double>(4, 0));
}

/// What an expert layer reads, after the router.
struct Layer {
  int64_t experts, hidden, width;
  Tensor x, weights, gate_up, down;

  Layer(int64_t tokens, int64_t number, int64_t hidden_width, int64_t expert_width)
      : experts(number),
        hidden(hidden_width),
        width(expert_width),
        x(random_tensor(DType::kF32, {tokens, hidden}, 1)),
        weights(random_tensor(DType::kF32, {tokens, kSlots}, 2)),
        gate_up(random_tensor(DType::kF32, {experts, 2 * width, hidden}, 3)),
        down(random_tensor(DType::kF32, {experts, hidden, width}, 4)) {}
};

/// What it keeps for the way back: one row per kept pair.
struct Rows {
  Tensor in, weight, gate_up;
};

Rows rows_of(Stream& stream, const Layer& layer, const Sorted& sorted) {
  const int64_t kept = sorted.sources().elements();
  Rows rows{Tensor(DType::kF32, {kept, layer.hidden}), Tensor(DType::kF32, {kept}),
            Tensor(DType::kF32, {kept, 2 * layer.width})};
  permute_pairs(stream, {.y = rows.weight, .x = layer.weights, .source_of = sorted.sources()});
  gather_rows(stream, {.y = rows.in, .x = layer.x, .source_of = sorted.sources(), .slots = kSlots});
  grouped_matmul(stream, {.c = rows.gate_up,
                          .a = rows.in,
                          .b = layer.gate_up,
                          .offsets = sorted.offsets,
                          .transpose_b = true});
  return rows;
}

Tensor forward(Stream& stream, const Layer& layer, const Sorted& sorted) {
  const Rows rows = rows_of(stream, layer, sorted);
  const int64_t kept = rows.weight.view().elements();
  const Tensor a(DType::kF32, {kept, layer.width});
  const Tensor out(DType::kF32, {kept, layer.hidden});
  swiglu_forward(stream, {.y = a, .gate_up = rows.gate_up, .row_weight = rows.weight});
  grouped_matmul(
      stream, {.c = out, .a = a, .b = layer.down, .offsets = sorted.offsets, .transpose_b = true});
  Tensor y(DType::kF32, layer.x.shape());
  gather_sum(stream, {.y = y, .x = out, .row_of = sorted.row_of});
  return y;
}

/// The gradients of x, weights, gate_up and down.
std::vector<Tensor> backward(Stream& stream, const Layer& layer, const Sorted& sorted,
                             const Tensor& dy) {
  const Rows rows = rows_of(stream, layer, sorted);
  const int64_t kept = rows.weight.view().elements();
  const Tensor dout(DType::kF32, {kept, layer.hidden});
  const Tensor a(DType::kF32, {kept, layer.width});
  const Tensor da(DType::kF32, {kept, layer.width});
  const Tensor dgate_up_rows(DType::kF32, {kept, 2 * layer.width});
  const Tensor drow_weight(DType::kF32, {kept});
  Tensor dx(DType::kF32, layer.x.shape());
  Tensor dweights = filled(DType::kF32, layer.weights.shape(), 99);
  Tensor dgate_up(DType::kF32, layer.gate_up.shape());
  Tensor ddown(DType::kF32, layer.down.shape());
  gather_rows(stream, {.y = dout, .x = dy, .source_of = sorted.sources(), .slots = kSlots});
  grouped_matmul(stream, {.c = da, .a = dout, .b = layer.down, .offsets = sorted.offsets});
  swiglu_backward(stream, {.dgate_up = dgate_up_rows,
                           .dy = da,
                           .gate_up = rows.gate_up,
                           .row_weight = rows.weight,
                           .drow_weight = drow_weight,
                           .y = a});
  grouped_matmul_weight(stream, {.c = ddown, .a = dout, .b = a, .offsets = sorted.offsets});
  grouped_matmul_weight(
      stream, {.c = dgate_up, .a = dgate_up_rows, .b = rows.in, .offsets = sorted.offsets});
  const Tensor dxp(DType::kF32, {kept, layer.hidden});
  grouped_matmul(stream,
                 {.c = dxp, .a = dgate_up_rows, .b = layer.gate_up, .offsets = sorted.offsets});
  permute_pairs(stream,
                {.y = dweights, .x = drow_weight, .source_of = sorted.sources(), .inverse = true});
  gather_sum(stream, {.y = dx, .x = dxp, .row_of = sorted.row_of});
  return support::tensors(std::move(dx), std::move(dweights), std::move(dgate_up),
                          std::move(ddown));
}

template <class T>
std::vector<T> part(const std::vector<T>& x, int64_t first, int64_t count) {
  return {x.begin() + first, x.begin() + first + count};
}

/// y_t = sum over slots of kept * w * E(x_t), pair by pair; inputs in the order of Layer.
template <class T>
std::vector<T> masked_forward(const std::vector<std::vector<T>>& in) {
  const auto& [x, weights, gate_up, down] = std::tie(in[0], in[1], in[2], in[3]);
  std::vector<T> y(static_cast<size_t>(kTokens * kHidden), T(0));
  for (size_t pair = 0; pair < kChosen.size(); ++pair) {
    const int64_t e = kChosen[pair];
    const auto token = static_cast<int64_t>(pair) / kSlots;
    const std::vector<T> projected =
        reference::matmul(part(x, token * kHidden, kHidden),
                          part(gate_up, e * 2 * kWidth * kHidden, 2 * kWidth * kHidden), 1,
                          2 * kWidth, kHidden, false, true);
    const T weight = (kKept[pair] ? 1.0 : 0.0) * weights[pair];
    const std::vector<T> out = reference::matmul(reference::swiglu(projected, {weight}),
                                                 part(down, e * kHidden * kWidth, kHidden * kWidth),
                                                 1, kHidden, kWidth, false, true);
    for (size_t d = 0; d < out.size(); ++d) y[static_cast<size_t>(token * kHidden) + d] += out[d];
  }
  return y;
}

TEST(ExpertCapacity, LayerIsTheMaskedSumAndItsGradient) {
  Stream stream(support::device(), 2);
  const Layer layer(kTokens, kExperts, kHidden, kWidth);
  const Tensor experts = from_ints(kChosen);
  const Sorted sorted = sort(as_choice(experts), kExperts, kCapacity);
  std::vector<std::vector<double>> in;
  std::vector<std::vector<Complex>> at;
  for (const Tensor* input : {&layer.x, &layer.weights, &layer.gate_up, &layer.down}) {
    in.push_back(to_doubles(*input));
    at.push_back(reference::as<Complex>(in.back()));
  }
  const double tolerance = support::tolerance(DType::kF32);
  expect_close(forward(stream, layer, sorted), masked_forward(in), tolerance, "y");

  const Tensor dy = random_tensor(DType::kF32, {kTokens, kHidden}, 5);
  const std::vector<Tensor> gradients = backward(stream, layer, sorted, dy);
  for (size_t i = 0; i < in.size(); ++i) {
    const auto expected =
        reference::complex_step_gradient(in[i], [&](const std::vector<Complex>& moved) {
          auto inputs = at;
          inputs[i] = moved;
          return reference::weighted_sum(to_doubles(dy), masked_forward(inputs));
        });
    expect_close(gradients[i], expected, tolerance, concat("gradient ", i));
  }
  for (size_t pair = 0; pair < kKept.size(); ++pair) {
    EXPECT_EQ(gradients[1].as<float>()[pair] != 0, kKept[pair]) << "weight of pair " << pair;
  }
}

TEST(ExpertCapacity, ThreadsChangeNoBit) {
  const bool gpu = support::device().kind == DeviceKind::kGpu;  // whose tiles are small
  const int64_t tokens = gpu ? 90 : 900;
  const int64_t hidden = gpu ? 34 : 130;
  const int32_t experts = gpu ? 3 : 9;
  const Layer layer(tokens, experts, hidden, 40);
  const Tensor pairs = crowded(tokens, experts);
  const Sorted sorted = sort(as_choice(pairs), experts, 3 * tokens / 2 / experts);
  ASSERT_GT(to_doubles(sorted.dropped).front(), 100);
  const Tensor dy = random_tensor(DType::kF32, {tokens, hidden}, 5);
  support::expect_same_on_any_threads([&](Stream& stream) {
    std::vector<Tensor> all = backward(stream, layer, sorted, dy);
    all.push_back(forward(stream, layer, sorted));
    return all;
  });
}

TEST(ExpertCapacity, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const auto f32 = [](Shape shape) { return plan_view(DType::kF32, shape); };
  const auto i32 = [](Shape shape) { return plan_view(DType::kI32, shape); };
  const auto sort_with = [&](int64_t capacity, const TensorView& dropped) {
    sort_by_expert(stream, {.row_of = i32({3, 2}),
                            .source_of = i32({6}),
                            .offsets = i32({5}),
                            .experts = i32({3, 2}),
                            .capacity = capacity,
                            .dropped = dropped});
  };
  sort_with(2, f32({1}));
  expect_error([&] { sort_with(-1, {}); }, "sort_by_expert: capacity is -1, expected at least 0");
  expect_error([&] { sort_with(2, i32({1})); },
               "sort_by_expert: dropped is i32 [1], expected f32 [1] = [1]");
  expect_error([&] { sort_with(2, f32({4})); },
               "sort_by_expert: dropped is f32 [4], expected f32 [1] = [1]");
  const auto permute = [&](int64_t y, int64_t x, int64_t rows, bool inverse) {
    permute_pairs(stream,
                  {.y = f32({y}), .x = f32({x}), .source_of = i32({rows}), .inverse = inverse});
  };
  permute(4, 6, 4, false);
  permute(6, 4, 4, true);
  expect_error([&] { permute(6, 6, 4, false); },
               "permute_pairs: y is f32 [6], expected f32 of 4 elements");
  expect_error([&] { permute(4, 3, 4, false); },
               "permute_pairs: x is f32 [3], expected f32 of at least 4 elements");
  expect_error([&] { permute(6, 6, 4, true); },
               "permute_pairs: x is f32 [6], expected f32 of 4 elements");
  expect_error([&] { permute(3, 4, 4, true); },
               "permute_pairs: y is f32 [3], expected f32 of at least 4 elements");
}

}  // namespace
}  // namespace tessera
