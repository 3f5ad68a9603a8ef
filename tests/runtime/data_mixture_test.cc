#include "runtime/data/data_mixture.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "tests/runtime/dataset_fixture.h"

namespace tessera {
namespace {

constexpr int64_t kLongest = 16;

/// Data sets of one document each, of so many windows of 16 tokens.
class DataMixtureTest : public testing::Test {
 protected:
  struct Set {
    Set(const std::filesystem::path& directory, uint64_t seed)
        : tokens(directory, kTrainSplit, 257),
          loader(tokens, {.sequence_length = kLongest, .seed = seed}) {}
    TokenDataset tokens;
    DataLoader loader;
  };
  const DataLoader* make(const std::string& name, int64_t windows) {
    std::vector<int32_t> document(static_cast<size_t>(windows * kLongest + 1));
    std::iota(document.begin(), document.end(), 0);
    for (int32_t& token : document) token %= 256;
    std::filesystem::create_directories(directory_ / name);
    write_test_dataset(directory_ / name, {document});
    sets_.push_back(std::make_unique<Set>(directory_ / name, 7));
    return &sets_.back()->loader;
  }

  TemporaryDirectory directory_;
  std::vector<std::unique_ptr<Set>> sets_;
};

TEST_F(DataMixtureTest, OneSourceAtFullLengthIsTheLoadersOrder) {
  const DataLoader* loader = make("a", 11);
  const DataMixture mixture({{.name = "data", .loader = loader}}, 4);
  DataPosition at;
  int64_t sample = 0;
  for (const int64_t sequences : {4, 3, 1, 9}) {  // whatever the size of the steps
    const auto taken = mixture.take(at, {.sequences = sequences, .sequence_length = kLongest});
    for (const DataWindow& window : taken.windows) {
      EXPECT_EQ(window.first, loader->window(sample++) * kLongest);
    }
    at = taken.next;
  }
  EXPECT_EQ(at.samples, 17);
  EXPECT_EQ(at.tokens.at("data"), 17 * kLongest);
  // A checkpoint that knows nothing but the samples goes on at the same place.
  const DataPosition old{.samples = 8};
  const auto taken = mixture.take(old, {.sequences = 2, .sequence_length = kLongest});
  EXPECT_EQ(taken.windows[0].first, loader->window(8) * kLongest);
}

TEST_F(DataMixtureTest, EveryTokenIsSeenOncePerEpochWhateverTheLengths) {
  const DataLoader* loader = make("a", 24);
  const DataMixture mixture({{.name = "data", .loader = loader}}, 4);
  DataPosition at;
  std::map<int64_t, int> seen;  // by token
  const auto step = [&](int64_t sequences, int64_t length) {
    const auto taken = mixture.take(at, {.sequences = sequences, .sequence_length = length});
    for (const DataWindow& window : taken.windows) {
      for (int64_t i = 0; i < length; ++i) ++seen[window.first + i];
    }
    at = taken.next;
  };
  step(16, 4);  // as many tokens as 4 windows
  step(16, 4);
  step(8, 8);
  for (int i = 0; i < 4; ++i) step(2, 8);  // fewer
  step(4, 16);
  step(4, 16);
  EXPECT_EQ(seen.size(), 24u * 16);
  for (const auto& [token, times] : seen) EXPECT_EQ(times, 1) << token;
  // Pieces of one step lie in as many windows as there are, not side by side.
  const auto taken = mixture.take(at, {.sequences = 4, .sequence_length = 4});
  std::set<int64_t> windows;
  for (const DataWindow& window : taken.windows) windows.insert(window.first / kLongest);
  EXPECT_EQ(windows.size(), 4u);
}

TEST_F(DataMixtureTest, AStripeThatWasBegunIsLeftWhenTheLengthChanges) {
  const DataMixture mixture({{.name = "data", .loader = make("a", 64)}}, 4);
  DataPosition at = mixture.take({}, {.sequences = 5, .sequence_length = 4}).next;
  EXPECT_EQ(at.tokens.at("data"), 20);
  at = mixture.take(at, {.sequences = 1, .sequence_length = 8}).next;
  EXPECT_EQ(at.tokens.at("data"), 64 + 8);
}

TEST_F(DataMixtureTest, SourcesHaveTheirSharesOfAnyFewSamples) {
  const std::vector<double> weights{0.1, 0.25};
  for (const int64_t first : {int64_t{0}, int64_t{12345}, int64_t{1} << 40}) {
    for (const int64_t count : {10, 64, 1000}) {
      std::array<int64_t, 3> found{};
      for (int64_t i = 0; i < count; ++i) ++found[source_of(first + i, weights)];
      EXPECT_NEAR(static_cast<double>(found[0]), 0.65 * static_cast<double>(count), 4);
      EXPECT_NEAR(static_cast<double>(found[1]), 0.1 * static_cast<double>(count), 4);
      EXPECT_NEAR(static_cast<double>(found[2]), 0.25 * static_cast<double>(count), 4);
    }
  }
  EXPECT_EQ(source_of(0, {}), 0u);
  for (int64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(source_of(i, {0}), 0u);
    EXPECT_EQ(source_of(i, {1}), 1u);
  }
}

TEST_F(DataMixtureTest, AStepIsTheSameWhereverTheRunWasStopped) {
  const DataMixture mixture(
      {{.name = "data", .loader = make("a", 13)}, {.name = "task", .loader = make("b", 5)}}, 4);
  const auto demand = [](int64_t step) {
    return DataDemand{.sequences = step < 4 ? 16 : 4,
                      .sequence_length = step < 4 ? 4 : 16,
                      .weights = {0.1 * static_cast<double>(step)}};
  };
  DataPosition at;
  std::vector<DataPosition> positions;
  std::vector<std::vector<DataWindow>> windows;
  for (int64_t step = 0; step < 8; ++step) {
    positions.push_back(at);
    auto taken = mixture.take(at, demand(step));
    windows.push_back(taken.windows);
    at = taken.next;
  }
  for (size_t step = 0; step < positions.size(); ++step) {
    const auto again = mixture.take(positions[step], demand(static_cast<int64_t>(step)));
    EXPECT_EQ(again.windows, windows[step]) << step;
  }
  // Every source goes on by itself: its tokens are those that it gave.
  EXPECT_EQ(at.tokens.size(), 2u);
  EXPECT_GT(at.tokens.at("task"), 0);
}

TEST_F(DataMixtureTest, ThePoolIsThePrefixOfTheEasiest) {
  const DataLoader* loader = make("a", 10);
  const std::vector<int64_t> ranking{7, 2, 9, 0, 1, 3, 4, 5, 6, 8};
  const DataMixture mixture({{.name = "data", .loader = loader, .easiest_first = ranking}}, 4);
  for (const auto& [pool, count] : std::map<double, size_t>{{0.01, 1}, {0.3, 3}, {0.35, 4}}) {
    const auto taken =
        mixture.take({}, {.sequences = 40, .sequence_length = kLongest, .pool = pool});
    std::set<int64_t> seen;
    for (const DataWindow& window : taken.windows) seen.insert(window.first / kLongest);
    EXPECT_EQ(seen, std::set<int64_t>(ranking.begin(),
                                      ranking.begin() + static_cast<std::ptrdiff_t>(count)));
  }
  // All of them: in the order of a run without difficulty.
  const auto all = mixture.take({}, {.sequences = 10, .sequence_length = kLongest});
  EXPECT_EQ(all.windows[3].first, loader->window(3) * kLongest);
}

TEST_F(DataMixtureTest, RefusesDemandsThatItCannotMeet) {
  const DataMixture mixture({{.name = "data", .loader = make("a", 10)}}, 4);
  EXPECT_THROW(mixture.take({}, {.sequences = 1, .sequence_length = 5}), Error);
  EXPECT_THROW(mixture.take({}, {.sequences = 0, .sequence_length = 4}), Error);
  EXPECT_THROW(mixture.take({}, {.sequences = 1, .sequence_length = 4, .weights = {0.5}}), Error);
  EXPECT_THROW(DataMixture({}, 4), Error);
  EXPECT_THROW(DataMixture({{.name = "a", .loader = make("b", 3), .easiest_first = {0}}}, 4),
               Error);
}

}  // namespace
}  // namespace tessera
