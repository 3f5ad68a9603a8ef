#include "kernels/token_smear.h"

#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

constexpr int64_t kVocabulary = 41;

/// What one call reads; of 150 tokens a few have nobody before them.
struct Case {
  Tensor table;
  Tensor weight;
  Tensor before;
  Tensor y;  // or dy

  Case(DType dtype, int64_t n, int64_t dim, int64_t tokens = 150)
      : table(random_tensor(dtype, {kVocabulary, dim}, 1)),
        weight(random_tensor(dtype, {n, dim}, 2)),
        before(support::random_ints({n, tokens}, 3, -4, kVocabulary)),
        y(random_tensor(dtype, {tokens, dim}, 4)) {
    for (int32_t& id : before.as<int32_t>()) id = std::max(id, -1);
  }
  int64_t n() const { return weight.shape()[0]; }
  int64_t dim() const { return weight.shape()[1]; }
  int64_t tokens() const { return y.shape()[0]; }

  /// Calls visit(j * dim + d, t * dim + d, id * dim + d) for all that meets, in order.
  template <class Visit>
  void for_each(Visit&& visit) const {
    const auto ids = before.as<int32_t>();
    for (int64_t j = 0; j < n(); ++j) {
      for (int64_t t = 0; t < tokens(); ++t) {
        const int64_t id = ids[static_cast<size_t>(j * tokens() + t)];
        for (int64_t d = 0; d < dim() && id >= 0; ++d) {
          visit(static_cast<size_t>(j * dim() + d), static_cast<size_t>(t * dim() + d),
                static_cast<size_t>(id * dim() + d));
        }
      }
    }
  }
  /// The entries of the table from `begin` to `end`.
  TokenSmearForward forward(const Tensor& out, int64_t begin = 0, int64_t end = kVocabulary) const {
    return {.y = out,
            .table = table.view().rows(begin, end - begin),
            .weight = weight,
            .before = before,
            .first = begin,
            .vocabulary = kVocabulary};
  }
  TokenSmearBackward backward(const Tensor& dtable, const Tensor& dweight, int64_t begin = 0,
                              int64_t end = kVocabulary) const {
    return {.dtable = dtable.view().rows(begin, end - begin),
            .dweight = dweight,
            .dy = y,
            .table = table.view().rows(begin, end - begin),
            .weight = weight,
            .before = before,
            .first = begin,
            .vocabulary = kVocabulary};
  }
};

TEST(TokenSmear, ForwardAddsTheRowsOfTheTokensBefore) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    for (const int64_t dim : {16, 37, 2056}) {
      const Case of(dtype, 3, dim, dim > 1000 ? 9 : 150);
      const auto table = to_doubles(of.table);
      const auto weight = to_doubles(of.weight);
      std::vector<double> expected = to_doubles(of.y);
      of.for_each([&](size_t w, size_t t, size_t e) { expected[t] += weight[w] * table[e]; });
      token_smear_forward(stream, of.forward(of.y));
      support::expect_close(of.y, expected, support::tolerance(dtype), "y");
    }
  }
}

// y is linear in the table and in the weights: its derivatives are sums that can be written down.
TEST(TokenSmear, BackwardIsTheGradientOfForward) {
  Stream stream{support::device(), 3};
  for (const DType dtype : support::dtypes()) {
    for (const int64_t dim : {16, 300, 2056}) {
      const Case of(dtype, 2, dim, dim > 1000 ? 9 : 1100);
      const Tensor dtable = random_tensor(DType::kF32, {kVocabulary, dim}, 5);
      const Tensor dweight = random_tensor(DType::kF32, {2, dim}, 6);
      const auto table = to_doubles(of.table);
      const auto weight = to_doubles(of.weight);
      const auto dy = to_doubles(of.y);
      std::vector<double> expected_table = to_doubles(dtable);
      std::vector<double> expected_weight = to_doubles(dweight);
      of.for_each([&](size_t w, size_t t, size_t e) {
        expected_table[e] += weight[w] * dy[t];
        expected_weight[w] += dy[t] * table[e];
      });
      token_smear_backward(stream, of.backward(dtable, dweight));
      support::expect_close(dtable, expected_table, support::tolerance(DType::kF32), "dtable");
      support::expect_close(dweight, expected_weight, support::tolerance(DType::kF32), "dweight");
    }
  }
}

TEST(TokenSmear, ShardsAddUpToTheWholeTable) {
  Stream stream{support::device(), 2};
  const Case of(DType::kF32, 2, 20);
  const Tensor whole(DType::kF32, of.y.shape());
  const Tensor dtable(DType::kF32, of.table.shape());
  const Tensor dweight(DType::kF32, of.weight.shape());
  token_smear_forward(stream, of.forward(whole));
  token_smear_backward(stream, of.backward(dtable, dweight));
  for (const auto& bounds : {std::vector<int64_t>{0, 0, 3, 41}, {0, 11, 22, 33, 41}}) {
    std::vector<double> sum(static_cast<size_t>(whole.view().elements()));
    std::vector<double> weights(static_cast<size_t>(dweight.view().elements()));
    const Tensor rows(DType::kF32, of.table.shape());
    for (size_t i = 0; i + 1 < bounds.size(); ++i) {
      const Tensor y(DType::kF32, of.y.shape());
      const Tensor part(DType::kF32, of.weight.shape());
      token_smear_forward(stream, of.forward(y, bounds[i], bounds[i + 1]));
      token_smear_backward(stream, of.backward(rows, part, bounds[i], bounds[i + 1]));
      for (size_t at = 0; at < sum.size(); ++at) sum[at] += to_doubles(y)[at];
      for (size_t at = 0; at < weights.size(); ++at) weights[at] += to_doubles(part)[at];
    }
    support::expect_close(whole, sum, support::tolerance(DType::kF32), "y");
    support::expect_close(dweight, weights, support::tolerance(DType::kF32), "dweight");
    support::expect_same_bits(rows, dtable, "dtable");
  }
}

TEST(TokenSmear, HasNothingToDoWithoutTokensOrPlaces) {
  Stream stream{support::device()};
  for (const auto& [n, tokens] : {std::pair<int64_t, int64_t>{2, 0}, {0, 5}}) {
    const Case of(DType::kBF16, n, 8, tokens);
    const Tensor before = support::copy_of(of.y);
    const Tensor dtable(DType::kF32, {kVocabulary, 8});
    const Tensor dweight(DType::kF32, {n, 8});
    token_smear_forward(stream, of.forward(of.y));
    token_smear_backward(stream, of.backward(dtable, dweight));
    support::expect_same_bits(of.y, before, "y");
    for (const double x : to_doubles(dtable)) EXPECT_EQ(x, 0);
  }
}

TEST(TokenSmear, GivesTheSameBitsOnAnyNumberOfThreads) {
  const Case of(DType::kBF16, 2, 300, 700);
  support::expect_same_on_any_threads([&](Stream& stream) {
    Tensor y = support::copy_of(of.y);
    Tensor dtable(DType::kF32, of.table.shape());
    Tensor dweight(DType::kF32, of.weight.shape());
    token_smear_forward(stream, of.forward(y));
    token_smear_backward(stream, of.backward(dtable, dweight));
    return support::tensors(std::move(y), std::move(dtable), std::move(dweight));
  });
}

TEST(TokenSmear, RefusesIdsBeyondTheVocabulary) {
  Stream stream{support::device()};
  for (const int32_t bad : {static_cast<int32_t>(kVocabulary), -2}) {
    const Case of(DType::kF32, 1, 4, 3);
    of.before.as<int32_t>()[1] = bad;
    const Tensor dtable(DType::kF32, of.table.shape());
    const Tensor dweight(DType::kF32, of.weight.shape());
    const std::string sentence = concat("embedding: token 1 has id ", bad, ", expected -1 to 40");
    const char* on_gpu = "embedding: a token's id is not in the vocabulary";
    support::expect_kernel_error([&] { token_smear_forward(stream, of.forward(of.y)); }, sentence,
                                 on_gpu);
    support::expect_kernel_error(
        [&] { token_smear_backward(stream, of.backward(dtable, dweight)); }, sentence, on_gpu);
  }
}

TEST(TokenSmear, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const TokenSmearForward right{.y = plan_view(DType::kBF16, {3, 4}),
                                .table = plan_view(DType::kBF16, {7, 4}),
                                .weight = plan_view(DType::kBF16, {2, 4}),
                                .before = plan_view(DType::kI32, {2, 3})};
  token_smear_forward(stream, right);
  TokenSmearForward wrong = right;
  wrong.y = plan_view(DType::kF32, {3, 4});
  support::expect_error(
      [&] { token_smear_forward(stream, wrong); },
      "token_smear_forward: y is f32 [3, 4], expected bf16 [tokens, dim] = [3, 4]");
  wrong = right;
  wrong.weight = plan_view(DType::kBF16, {1, 4});
  support::expect_error(
      [&] { token_smear_forward(stream, wrong); },
      "token_smear_forward: weight is bf16 [1, 4], expected bf16 [n, dim] = [2, 4]");
  wrong = right;
  wrong.before = plan_view(DType::kI32, {3});
  support::expect_error([&] { token_smear_forward(stream, wrong); },
                        "token_smear_forward: before is [3], expected [n, tokens]");
  wrong = right;
  wrong.first = 7;
  support::expect_error(
      [&] { token_smear_forward(stream, wrong); },
      "token_smear_forward: first is 7 and vocabulary is 0, expected the vocabulary that");
  support::expect_error(
      [&] {
        token_smear_backward(stream, {.dtable = plan_view(DType::kF32, {7, 4}),
                                      .dweight = plan_view(DType::kF32, {3, 4}),
                                      .dy = right.y,
                                      .table = right.table,
                                      .weight = right.weight,
                                      .before = right.before});
      },
      "token_smear_backward: dweight is f32 [3, 4], expected f32 [n, dim] = [2, 4]");
}

}  // namespace
}  // namespace tessera
