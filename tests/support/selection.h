#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/block_selection.h"
#include "tests/support/random_tensor.h"

namespace tessera::support {

/// A block selection with its own memory, filled with garbage that a kernel has to overwrite.
class Selection {
 public:
  Selection(int64_t groups, int64_t tokens, int64_t kept)
      : blocks_(filled(DType::kI32, {groups, tokens, kept + 1}, -77)),
        scores_(filled(DType::kF32, {groups, tokens, kept + 1}, -77)),
        counts_(filled(DType::kI32, {groups, tokens}, -77)) {}

  BlockSelection view() const {
    return {.blocks = blocks_.view(), .scores = scores_.view(), .counts = counts_.view()};
  }
  int64_t kept() const { return blocks_.shape()[2] - 1; }
  int64_t row(int64_t group, int64_t token) const { return group * blocks_.shape()[1] + token; }
  std::span<int32_t> row_of_blocks(int64_t group, int64_t token) const {
    const auto slots = static_cast<size_t>(kept() + 1);
    return blocks_.as<int32_t>().subspan(static_cast<size_t>(row(group, token)) * slots, slots);
  }
  std::span<float> row_of_scores(int64_t group, int64_t token) const {
    const auto slots = static_cast<size_t>(kept() + 1);
    return scores_.as<float>().subspan(static_cast<size_t>(row(group, token)) * slots, slots);
  }
  int32_t& count(int64_t group, int64_t token) const {
    return counts_.as<int32_t>()[static_cast<size_t>(row(group, token))];
  }
  void expect_same_row(const Selection& other, int64_t group, int64_t token) const {
    EXPECT_EQ(count(group, token), other.count(group, token)) << "token " << token;
    EXPECT_TRUE(std::ranges::equal(row_of_blocks(group, token), other.row_of_blocks(group, token)))
        << "token " << token;
    EXPECT_TRUE(std::ranges::equal(row_of_scores(group, token), other.row_of_scores(group, token)))
        << "token " << token;
  }
  /// Its tensors; the selection is empty afterwards.
  std::vector<Tensor> take() {
    std::vector<Tensor> all;
    all.push_back(std::move(blocks_));
    all.push_back(std::move(scores_));
    all.push_back(std::move(counts_));
    return all;
  }

 private:
  Tensor blocks_;
  Tensor scores_;
  Tensor counts_;
};

}  // namespace tessera::support
