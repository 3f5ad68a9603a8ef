#include "kernels/tile_choice.h"

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <vector>

#include "tests/support/random_tensor.h"

namespace tessera::cpu {
namespace {

/// Keys of random scores, [slots, 16], of few different values with `ties`.
support::Tensor random_keys(int64_t slots, uint64_t seed, bool ties) {
  support::Tensor scores = support::random_ints({slots, kLanes}, seed, -2, ties ? 3 : 1 << 20);
  for (int32_t& x : scores.as<int32_t>()) x = score_key(static_cast<float>(x));
  return scores;
}

/// Its memory is aligned, which that of a standard container need not be in this file.
std::span<const I32x16> slots_of(const support::Tensor& keys) {
  return {static_cast<const I32x16*>(keys.view().data()), static_cast<size_t>(keys.shape()[0])};
}

/// The slots of one lane by sorting: larger slots first among equals.
std::vector<int64_t> best_of(std::span<const I32x16> keys, int t, int64_t wanted) {
  std::vector<std::pair<int32_t, int64_t>> all;
  for (size_t slot = 0; slot < keys.size(); ++slot) {
    all.emplace_back(keys[slot][t], static_cast<int64_t>(slot));
  }
  std::ranges::sort(all, std::greater{});
  std::vector<int64_t> slots;
  for (int64_t i = 0; i < wanted; ++i) slots.push_back(all[static_cast<size_t>(i)].second);
  std::ranges::sort(slots);
  return slots;
}

TEST(TileChoice, FindsTheBestSlotsOfEveryToken) {
  for (const bool ties : {false, true}) {
    for (const int64_t slots : {1, 2, 17, 300}) {
      for (const int64_t wanted : {int64_t{1}, (slots + 1) / 2, slots}) {
        for (const int64_t tokens : {1, 7, 16}) {
          const support::Tensor tensor =
              random_keys(slots, static_cast<uint64_t>(slots + wanted), ties);
          const std::span<const I32x16> keys = slots_of(tensor);
          std::array<std::vector<int64_t>, kLanes> found;
          for_each_best(keys, static_cast<int32_t>(wanted), tokens,
                        [&](int t, int64_t slot, int32_t key) {
                          EXPECT_EQ(key, keys[static_cast<size_t>(slot)][t]);
                          found[static_cast<size_t>(t)].push_back(slot);
                        });
          for (int t = 0; t < kLanes; ++t) {
            const std::vector<int64_t> expected =
                t < tokens ? best_of(keys, t, wanted) : std::vector<int64_t>{};
            EXPECT_EQ(found[static_cast<size_t>(t)], expected)
                << "lane " << t << ", " << wanted << " of " << slots;
          }
        }
      }
    }
  }
}

TEST(TileChoice, KeysOfSixteenScoresAreTheirKeys) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  F32x16 scores{};
  const std::array<float, 6> some{nan, -nan, -3, 0, 2.5, std::numeric_limits<float>::infinity()};
  for (size_t i = 0; i < some.size(); ++i) scores[static_cast<int>(i)] = some[i];
  const I32x16 keys = keys_of(scores);
  for (int t = 0; t < kLanes; ++t) EXPECT_EQ(keys[t], score_key(scores[t]));
}

TEST(TileChoice, TheRunnerUpIsTheSmallestScoreOfARow) {
  std::array<int32_t, 5> blocks;
  std::array<float, 5> scores;
  SelectionRow row{.blocks = blocks.data(), .scores = scores.data()};
  for (const auto& [block, z] : std::map<int, float>{{2, 4}, {5, 1}, {7, 1}, {9, 3}}) {
    row.add(block, score_key(z));
  }
  row.move_runner_up_to_the_end();
  row.clear_from(4, 5);
  EXPECT_EQ(blocks, (std::array<int32_t, 5>{2, 7, 9, 5, -1}));
  EXPECT_EQ(scores, (std::array<float, 5>{4, 1, 3, 1, 0}));
}

}  // namespace
}  // namespace tessera::cpu
