#include "kernels/embedding.h"

#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using support::from_ints;
using support::plan_view;
using support::random_tensor;
using support::Tensor;

TEST(Embedding, ForwardCopiesRows) {
  Stream stream{support::device(), 2};
  const std::vector<int32_t> ids{4, 0, 2, 2, 6};
  for (const DType dtype : support::dtypes()) {
    const Tensor table = random_tensor(dtype, {7, 20}, 1);
    const Tensor y(dtype, {5, 20});
    embedding_forward(stream, {.y = y, .table = table, .ids = from_ints(ids)});
    for (int64_t t = 0; t < 5; ++t) {
      support::expect_same_bits(y.view().rows(t, 1),
                                table.view().rows(ids[static_cast<size_t>(t)], 1), "row");
    }
  }
}

TEST(Embedding, BackwardAddsInTokenOrder) {
  Stream stream{support::device(), 3};
  const Tensor ids = support::random_ints({64}, 2, 0, 5);
  for (const DType dtype : support::dtypes()) {
    for (const int64_t dim : {16, 300}) {
      const Tensor dy = random_tensor(dtype, {64, dim}, 3);
      const Tensor dtable = random_tensor(DType::kF32, {6, dim}, 4);
      const Tensor expected = support::copy_of(dtable);
      const auto more = support::to_doubles(dy);
      for (size_t t = 0; t < 64; ++t) {
        for (size_t d = 0; d < static_cast<size_t>(dim); ++d) {
          const size_t to = static_cast<size_t>(ids.as<int32_t>()[t] * dim) + d;
          const size_t from = t * static_cast<size_t>(dim) + d;
          expected.as<float>()[to] += static_cast<float>(more[from]);
        }
      }
      embedding_backward(stream, {.dtable = dtable, .dy = dy, .ids = ids});
      support::expect_same_bits(dtable, expected, concat("dtable of ", name_of(dtype)));
    }
  }
}

// Three digits of a row's number, several tiles of tokens, often the same row.
TEST(Embedding, BackwardAddsInTokenOrderIntoALargeTable) {
  Stream stream{support::device(), 2};
  const Tensor ids = support::random_ints({5000}, 12, 0, 69'999);
  for (size_t t = 0; t < 5000; t += 3) ids.as<int32_t>()[t] = t % 2 == 0 ? 66'000 : 300;
  const Tensor dy = random_tensor(DType::kF32, {5000, 4}, 13);
  const Tensor dtable(DType::kF32, {70'000, 4});
  const Tensor expected(DType::kF32, {70'000, 4});
  for (size_t i = 0; i < 20'000; ++i) {
    const auto row = static_cast<size_t>(ids.as<int32_t>()[i / 4]);
    expected.as<float>()[row * 4 + i % 4] += dy.as<float>()[i];
  }
  embedding_backward(stream, {.dtable = dtable, .dy = dy, .ids = ids});
  support::expect_same_bits(dtable, expected, "dtable");
}

TEST(Embedding, HasNothingToDoWithoutTokens) {
  Stream stream{support::device()};
  const Tensor table = random_tensor(DType::kF32, {7, 4}, 14);
  const Tensor before = support::copy_of(table);
  const Tensor none(DType::kF32, {0, 4});
  embedding_forward(stream, {.y = none, .table = table, .ids = from_ints({})});
  embedding_backward(stream, {.dtable = table, .dy = none, .ids = from_ints({})});
  support::expect_same_bits(table, before, "table");
}

TEST(Embedding, BackwardScalesByColumnAndLeavesGapsOut) {
  Stream stream{support::device(), 2};
  const Tensor ids = from_ints({3, -1, 0, 3, -1, 5, 3});
  for (const DType dtype : support::dtypes()) {
    for (const int64_t dim : {16, 21}) {
      const Tensor dy = random_tensor(dtype, {7, dim}, 15);
      const Tensor scale = random_tensor(dtype, {dim}, 16);
      const Tensor dtable = random_tensor(DType::kF32, {6, dim}, 17);
      std::vector<double> expected = support::to_doubles(dtable);
      for (const size_t t : {0, 2, 3, 5, 6}) {
        const auto row = static_cast<size_t>(ids.as<int32_t>()[t]);
        for (size_t d = 0; d < static_cast<size_t>(dim); ++d) {
          expected[row * static_cast<size_t>(dim) + d] +=
              support::to_doubles(scale)[d] *
              support::to_doubles(dy)[t * static_cast<size_t>(dim) + d];
        }
      }
      embedding_backward(stream,
                         {.dtable = dtable, .dy = dy, .ids = ids, .scale = scale, .gaps = true});
      support::expect_close(dtable, expected, support::tolerance(DType::kF32), name_of(dtype));
    }
  }
}

/// Rows [bounds[i], bounds[i + 1]) of a table.
TensorView shard_of(const Tensor& table, const std::vector<int64_t>& bounds, size_t i) {
  return table.view().rows(bounds[i], bounds[i + 1] - bounds[i]);
}

const std::vector<std::vector<int64_t>> kShards{
    {0, 257}, {0, 100, 257}, {0, 0, 3, 257}, {0, 65, 130, 195, 257}};

TEST(Embedding, ShardsAddUpToTheWholeTable) {
  Stream stream{support::device(), 2};
  const Tensor ids = support::random_ints({90}, 7, 0, 257);
  for (const DType dtype : support::dtypes()) {
    const Tensor table = random_tensor(dtype, {257, 20}, 8);
    const Tensor whole(dtype, {90, 20});
    embedding_forward(stream, {.y = whole, .table = table, .ids = ids});
    for (const auto& bounds : kShards) {
      std::vector<double> sum(90 * 20);
      for (size_t i = 0; i + 1 < bounds.size(); ++i) {
        const Tensor y = support::filled(dtype, {90, 20}, 99);
        embedding_forward(stream, {.y = y,
                                   .table = shard_of(table, bounds, i),
                                   .ids = ids,
                                   .first = bounds[i],
                                   .vocabulary = 257});
        const auto part = support::to_doubles(y);
        for (size_t at = 0; at < sum.size(); ++at) sum[at] += part[at];
      }
      EXPECT_EQ(sum, support::to_doubles(whole));
    }
  }
}

TEST(Embedding, ShardsGetTheirRowsOfTheGradient) {
  Stream stream{support::device(), 2};
  const Tensor ids = support::random_ints({300}, 9, 0, 257);
  for (const DType dtype : support::dtypes()) {
    const Tensor dy = random_tensor(dtype, {300, 150}, 10);
    const Tensor whole = random_tensor(DType::kF32, {257, 150}, 11);
    const Tensor before = support::copy_of(whole);
    embedding_backward(stream, {.dtable = whole, .dy = dy, .ids = ids});
    for (const auto& bounds : kShards) {
      const Tensor dtable = support::copy_of(before);
      for (size_t i = 0; i + 1 < bounds.size(); ++i) {
        embedding_backward(stream, {.dtable = shard_of(dtable, bounds, i),
                                    .dy = dy,
                                    .ids = ids,
                                    .first = bounds[i],
                                    .vocabulary = 257});
      }
      support::expect_same_bits(dtable, whole, name_of(dtype));
    }
  }
}

TEST(Embedding, ShardsRefuseIdsBeyondTheVocabulary) {
  Stream stream{support::device()};
  const Tensor table(DType::kF32, {3, 4});
  for (const int32_t bad : {10, -1}) {
    const Tensor ids = from_ints({9, bad});
    const Tensor y(DType::kF32, {2, 4});
    const std::string sentence = concat("embedding: token 1 has id ", bad, ", expected 0 to 9");
    support::expect_kernel_error(
        [&] {
          embedding_forward(stream,
                            {.y = y, .table = table, .ids = ids, .first = 5, .vocabulary = 10});
        },
        sentence, "embedding: a token's id is not in the vocabulary");
    support::expect_kernel_error(
        [&] {
          embedding_backward(stream,
                             {.dtable = table, .dy = y, .ids = ids, .first = 5, .vocabulary = 10});
        },
        sentence, "embedding: a token's id is not in the vocabulary");
  }
}

TEST(Embedding, GivesTheSameBitsOnAnyNumberOfThreads) {
  const Tensor ids = support::random_ints({500}, 5, 0, 40);
  const Tensor dy = random_tensor(DType::kBF16, {500, 700}, 6);
  support::expect_same_on_any_threads([&](Stream& stream) {
    Tensor dtable(DType::kF32, {40, 700});
    embedding_backward(stream, {.dtable = dtable, .dy = dy, .ids = ids});
    return support::tensors(std::move(dtable));
  });
}

TEST(Embedding, SaysWhichTokenIsOutOfRange) {
  Stream stream{Device{}};
  const Tensor table(DType::kF32, {7, 4});
  const Tensor y(DType::kF32, {3, 4});
  for (const int32_t bad : {7, -1, 50256}) {
    const std::string sentence =
        concat("embedding: token 2 has id ", bad, ", expected 0 to 6; use data of the model's");
    const Tensor ids = from_ints({6, 0, bad});
    support::expect_error([&] { embedding_forward(stream, {.y = y, .table = table, .ids = ids}); },
                          sentence);
    support::expect_error(
        [&] { embedding_backward(stream, {.dtable = table, .dy = y, .ids = ids}); }, sentence);
  }
  try {
    embedding_forward(stream, {.y = y, .table = table, .ids = from_ints({7, 7, 7})});
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadData);
  }
}

TEST(Embedding, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const TensorView table = plan_view(DType::kBF16, {7, 4});
  support::expect_error(
      [&] {
        embedding_forward(stream, {.y = plan_view(DType::kF32, {3, 4}),
                                   .table = table,
                                   .ids = plan_view(DType::kI32, {3})});
      },
      "embedding_forward: y is f32 [3, 4], expected bf16 [tokens, dim] = [3, 4]");
  support::expect_error(
      [&] {
        embedding_backward(stream, {.dtable = table,
                                    .dy = plan_view(DType::kF32, {3, 4}),
                                    .ids = plan_view(DType::kI32, {3})});
      },
      "embedding_backward: dtable is bf16 [7, 4], expected f32 [rows, dim] = [7, 4]");
  support::expect_error(
      [&] {
        embedding_forward(stream, {.y = plan_view(DType::kBF16, {3, 4}),
                                   .table = table,
                                   .ids = plan_view(DType::kI32, {3}),
                                   .first = 7});
      },
      "embedding_forward: first is 7 and vocabulary is not set, expected the vocabulary that");
  support::expect_error(
      [&] {
        embedding_backward(stream, {.dtable = plan_view(DType::kF32, {7, 4}),
                                    .dy = plan_view(DType::kF32, {3, 4}),
                                    .ids = plan_view(DType::kI32, {3}),
                                    .first = -7,
                                    .vocabulary = 9});
      },
      "embedding_backward: first is -7 and vocabulary is 9, expected at least 0");
  support::expect_error(
      [&] {
        embedding_backward(stream, {.dtable = plan_view(DType::kF32, {7, 4}),
                                    .dy = plan_view(DType::kF32, {3, 4}),
                                    .ids = plan_view(DType::kI32, {3}),
                                    .scale = plan_view(DType::kBF16, {4})});
      },
      "embedding_backward: scale is bf16 [4], expected f32 [dim] = [4]");
}

}  // namespace
}  // namespace tessera
