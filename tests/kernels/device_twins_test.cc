#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cache_append.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/group_heads.h"
#include "kernels/reduce.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "kernels/token_smear.h"
#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

// Shapes at which the kernels of a device take other ways than at those of the tests of each
// kernel: rows longer than a block of lanes, addresses that are no multiple of a pack, more than
// one launch. What the CPU gives is right, by those tests.

namespace tessera {
namespace {

using support::random_tensor;
using support::Tensor;

/// run(stream) returns a std::vector<Tensor>: close on the device of the tests and on the CPU.
template <class Run>
void expect_twins(const std::string& what, Run&& run) {
  Stream on_cpu{Device{}, 2};
  Stream on_device{support::device(), 2};
  const std::vector<Tensor> expected = run(on_cpu);
  const std::vector<Tensor> found = run(on_device);
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    support::expect_close(found[i], support::to_doubles(expected[i]),
                          support::tolerance(found[i].dtype()), concat(what, " output ", i));
  }
}

/// All of x but the first element: no pack begins at its address.
template <class View>
View but_first(const View& x) {
  return x.rows(1, x.shape()[0] - 1);
}

TEST(DeviceTwins, ElementsAtAnyAddress) {
  for (const DType dtype : support::dtypes()) {
    const Tensor x = random_tensor(dtype, {9001}, 1);
    const Tensor g = random_tensor(dtype, {9001}, 2);
    expect_twins(name_of(dtype), [&](Stream& stream) {
      Tensor sum = support::copy_of(x);
      Tensor wide(DType::kF32, {9001});
      Tensor narrow(DType::kBF16, {9001});
      Tensor filled(dtype, {9001});
      add(stream,
          {.y = but_first(sum.view()), .a = but_first(sum.view()), .b = but_first(g.view())});
      accumulate(stream, {.y = but_first(wide.view()), .x = but_first(g.view())});
      cast(stream, {.y = but_first(narrow.view()), .x = but_first(wide.view())});
      fill(stream, {.x = but_first(filled.view()), .value = 3});
      // In double: rounded, since the two add in another order.
      Tensor exact(DType::kF64, {1});
      add_sum(stream, {.total = exact, .x = but_first(x.view())});
      Tensor total(DType::kF32, {1});
      total.as<float>()[0] = static_cast<float>(exact.as<double>()[0]);
      return support::tensors(std::move(sum), std::move(wide), std::move(narrow), std::move(filled),
                              std::move(total));
    });
  }
}

TEST(DeviceTwins, LongAndShortRowsOfSwiglu) {
  for (const DType dtype : support::dtypes()) {
    for (const int64_t dim : {8, 1100, 4104, 2051}) {
      const Tensor gate_up = random_tensor(dtype, {5, 2 * dim}, 3);
      const Tensor dy = random_tensor(dtype, {5, dim}, 4);
      const Tensor weight = random_tensor(DType::kF32, {5}, 5);
      expect_twins(concat(name_of(dtype), " dim ", dim), [&](Stream& stream) {
        Tensor y(dtype, {5, dim});
        Tensor again(dtype, {5, dim});
        Tensor dgate_up(dtype, {5, 2 * dim});
        Tensor dweight(DType::kF32, {5});
        swiglu_forward(stream, {.y = y, .gate_up = gate_up, .row_weight = weight});
        swiglu_backward(stream, {.dgate_up = dgate_up,
                                 .dy = dy,
                                 .gate_up = gate_up,
                                 .row_weight = weight,
                                 .drow_weight = dweight,
                                 .y = again});
        return support::tensors(std::move(y), std::move(again), std::move(dgate_up),
                                std::move(dweight));
      });
    }
  }
}

TEST(DeviceTwins, ManyAndLongRowsOfRmsNorm) {
  for (const DType dtype : support::dtypes()) {
    for (const Shape& shape : {Shape{600, 16}, Shape{2, 4104}, Shape{3, 1031}, Shape{1, 16'392}}) {
      const Tensor x = random_tensor(dtype, shape, 13);
      const Tensor dy = random_tensor(dtype, shape, 14);
      const Tensor more = random_tensor(dtype, shape, 15);
      const Tensor weight = random_tensor(dtype, {shape[1]}, 16);
      expect_twins(concat(name_of(dtype), " ", shape), [&](Stream& stream) {
        Tensor y(dtype, shape);
        Tensor dh(dtype, shape);
        Tensor rstd(DType::kF32, {shape[0]});
        Tensor dweight = support::filled(DType::kF32, {shape[1]}, 3);
        rms_norm_forward(stream,
                         {.y = y, .rstd = rstd, .x = x, .weight = weight, .epsilon = 1e-3f});
        rms_norm_backward(stream, {.dh = dh,
                                   .dweight = dweight,
                                   .dy = dy,
                                   .h = x,
                                   .weight = weight,
                                   .rstd = rstd,
                                   .dresidual = more});
        return support::tensors(std::move(y), std::move(dh), std::move(rstd), std::move(dweight));
      });
    }
  }
}

TEST(DeviceTwins, ManyHeadsOfRope) {
  const Tensor positions = support::from_ints({5, 70'000, 0});
  for (const DType dtype : support::dtypes()) {
    for (const Shape& shape : {Shape{3, 37, 128}, Shape{3, 5, 64}, Shape{3, 30, 100}}) {
      const Tensor before = random_tensor(dtype, shape, 6);
      expect_twins(concat(name_of(dtype), " ", shape), [&](Stream& stream) {
        Tensor x = support::copy_of(before);
        rope(stream, {.x = x, .positions = positions, .base = 5e5f});
        return support::tensors(std::move(x));
      });
    }
  }
}

// More groups than one launch takes, one of them twice in the same and in another launch.
TEST(DeviceTwins, ManyGroupsOfHeads) {
  std::vector<int32_t> groups;
  for (int32_t c = 0; c < 70; ++c) groups.push_back(c == 3 || c == 69 ? 8 : c);
  const auto count = static_cast<int64_t>(groups.size());
  for (const DType dtype : support::dtypes()) {
    for (const int64_t d : {8, 3}) {
      const Tensor x = random_tensor(dtype, {3, 144, d}, 7);
      const Tensor y = random_tensor(dtype, {count, 3, 2 * d}, 8);
      const Tensor keys = random_tensor(dtype, {2, 144, d}, 9);
      const Tensor places = support::from_ints({1, 0});
      const Tensor rows = support::from_ints({1, 2});
      expect_twins(concat(name_of(dtype), " d ", d), [&](Stream& stream) {
        Tensor sum = support::copy_of(x);
        Tensor taken(dtype, y.shape());
        Tensor cache(dtype, {count, 2, 3, d});
        add_groups(stream, {.x = sum, .y = y, .groups = groups, .group_heads = 2});
        take_groups(stream, {.y = taken, .x = x, .groups = groups, .group_heads = 2});
        cache_append(stream,
                     {.cache = cache, .x = keys, .places = places, .rows = rows, .groups = groups});
        return support::tensors(std::move(sum), std::move(taken), std::move(cache));
      });
    }
  }
}

TEST(DeviceTwins, LongRowsOfAnEmbedding) {
  const Tensor ids = support::from_ints({4, 0, 4, 2, 4, 4, 4, 4, 4, 4, 4, 1});
  for (const DType dtype : support::dtypes()) {
    for (const int64_t dim : {2056, 1031}) {
      const Tensor table = random_tensor(dtype, {5, dim}, 10);
      const Tensor dy = random_tensor(dtype, {12, dim}, 11);
      expect_twins(concat(name_of(dtype), " dim ", dim), [&](Stream& stream) {
        Tensor y(dtype, {12, dim});
        Tensor dtable(DType::kF32, {5, dim});
        embedding_forward(stream, {.y = y, .table = table, .ids = ids});
        embedding_backward(stream, {.dtable = dtable, .dy = dy, .ids = ids});
        return support::tensors(std::move(y), std::move(dtable));
      });
    }
  }
}

TEST(DeviceTwins, SmearOfLongRows) {
  const Tensor ids = support::from_ints({-1, 4, 0, 4, 2, 4, -1, 4, 4, 4, 4, 1});
  const ConstTensorView before = ids.view().reshape({2, 6});
  for (const DType dtype : support::dtypes()) {
    for (const int64_t dim : {2056, 1031}) {
      const Tensor table = random_tensor(dtype, {5, dim}, 20);
      const Tensor weight = random_tensor(dtype, {2, dim}, 21);
      const Tensor dy = random_tensor(dtype, {6, dim}, 22);
      expect_twins(concat(name_of(dtype), " dim ", dim), [&](Stream& stream) {
        Tensor y = support::copy_of(dy);
        Tensor dtable(DType::kF32, {5, dim});
        Tensor dweight(DType::kF32, {2, dim});
        token_smear_forward(stream, {.y = y, .table = table, .weight = weight, .before = before});
        token_smear_backward(stream, {.dtable = dtable,
                                      .dweight = dweight,
                                      .dy = dy,
                                      .table = table,
                                      .weight = weight,
                                      .before = before});
        return support::tensors(std::move(y), std::move(dtable), std::move(dweight));
      });
    }
  }
}

TEST(DeviceTwins, RowsOfLogitsInPieces) {
  const Tensor targets = support::from_ints({20'000, -1, 3});
  for (const DType dtype : support::dtypes()) {
    for (const DType out : support::dtypes()) {
      const Tensor logits = random_tensor(dtype, {3, 35'000}, 12, 5);
      expect_twins(concat(name_of(dtype), " to ", name_of(out)), [&](Stream& stream) {
        Tensor stats(DType::kF32, {3, kSoftmaxStats});
        Tensor losses(DType::kF32, {3});
        Tensor dlogits(out, logits.shape());
        softmax_stats(stream,
                      {.stats = stats, .logits = logits, .targets = targets, .vocabulary = 34'001});
        for (size_t row = 0; row < 3; ++row) {
          if (!std::isfinite(stats.as<float>()[3 * row + 2]))
            stats.as<float>()[3 * row + 2] = -1e3f;
        }
        merge_softmax_stats(stream, {.losses = losses,
                                     .merged = stats,
                                     .stats = stats.view().reshape({1, 3, kSoftmaxStats}),
                                     .targets = targets});
        cross_entropy_gradient(stream, {.dlogits = dlogits,
                                        .logits = logits,
                                        .merged = stats,
                                        .targets = targets,
                                        .vocabulary = 34'001,
                                        .scale = 0.5f});
        return support::tensors(std::move(losses), std::move(dlogits));
      });
    }
  }
}

}  // namespace
}  // namespace tessera
