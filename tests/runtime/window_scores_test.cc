#include "runtime/curriculum/window_scores.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "checkpoint/safetensors.h"
#include "runtime/score/score_windows.h"
#include "tests/runtime/training_fixture.h"

namespace tessera {
namespace {

class WindowScoresTest : public support::TrainingFixture {
 protected:
  /// Two documents of 6 and 3 tokens, of which 0 is the commonest.
  TokenDataset make() {
    std::filesystem::create_directories(directory_ / "small");
    write_test_dataset(directory_ / "small", {{0, 0, 0, 1, 2, 256}, {0, 0, 256}});
    return TokenDataset(directory_ / "small", kTrainSplit, 257);
  }
  static std::string thrown_by(const std::function<void()>& work) {
    try {
      work();
    } catch (const Error& error) {
      return concat(static_cast<int>(error.code()), ": ", error.what());
    }
    return "nothing was thrown";
  }
};

TEST_F(WindowScoresTest, LengthIsThatOfTheTokensDocuments) {
  const TokenDataset dataset = make();
  const WindowScores scores = score_by_length(dataset, 4);
  EXPECT_EQ(scores.by, "length");
  EXPECT_EQ(scores.tokens, 9);
  EXPECT_EQ(scores.scores, (std::vector<float>{6, (6 + 6 + 3 + 3) / 4.0f}));
}

TEST_F(WindowScoresTest, RarityIsTheMeanSurpriseOfSingleTokens) {
  const TokenDataset dataset = make();
  const auto surprise = [](double count) { return -std::log(count / 9); };
  const WindowScores scores = score_by_rarity(dataset, 4);
  ASSERT_EQ(scores.scores.size(), 2u);
  EXPECT_NEAR(scores.scores[0], (3 * surprise(5) + surprise(1)) / 4, 1e-6);
  EXPECT_NEAR(scores.scores[1], (surprise(1) + surprise(2) + 2 * surprise(5)) / 4, 1e-6);
}

TEST_F(WindowScoresTest, ComeBackFromTheirFileAndRankTheWindowsOfALoader) {
  const TokenDataset dataset = make();
  const std::filesystem::path path = directory_ / "scores";
  const WindowScores written{
      .by = "loss", .sequence_length = 2, .tokens = 9, .scores = {3, 2, 1, 1}};
  write_scores(path, written);
  const WindowScores read = read_scores(path);
  EXPECT_EQ(read.by, "loss");
  EXPECT_EQ(read.scores, written.scores);
  const DataLoader twos(dataset, {.sequence_length = 2});
  EXPECT_EQ(easiest_first(read, path, dataset, twos), (std::vector<int64_t>{2, 3, 1, 0}));
  const DataLoader fours(dataset, {.sequence_length = 4});
  EXPECT_EQ(easiest_first(read, path, dataset, fours), (std::vector<int64_t>{1, 0}));
  const DataLoader threes(dataset, {.sequence_length = 3});
  EXPECT_TRUE(thrown_by([&] {
                easiest_first(read, path, dataset, threes);
              }).starts_with(concat("65: ", path.string(), " scores windows of 2 of 9 tokens")));
}

TEST_F(WindowScoresTest, RefusesFilesOfOtherThings) {
  const std::filesystem::path path = directory_ / "scores";
  const auto after = [&](const WindowScores& scores) {
    write_scores(path, scores);
    return thrown_by([&] { read_scores(path); });
  };
  EXPECT_TRUE(
      after({.by = "loss", .sequence_length = 4, .tokens = 9, .scores = {1}})
          .starts_with(concat("65: ", path.string(), ": scores is f32 [1], expected f32 ")));
  EXPECT_EQ(after({.by = "loss", .sequence_length = 4, .tokens = 9, .scores = {1, NAN}}),
            concat("65: ", path.string(), ": scores[1] is nan, expected a finite number"));
  EXPECT_TRUE(after({.by = "loss", .sequence_length = 0, .tokens = 9, .scores = {1}})
                  .starts_with(concat("65: ", path.string(), " has no number 'sequence_length'")));
  write_safetensors(path, {});
  EXPECT_TRUE(thrown_by([&] { read_scores(path); }).starts_with("65: "));
  EXPECT_TRUE(thrown_by([&] { read_scores(directory_ / "none"); }).starts_with("2: "));
}

TEST_F(WindowScoresTest, LossIsThatOfTheTrainedModel) {
  // One window is the whole validation split of a run that has just been measured.
  const TrainConfig config = this->config(
      "run", {"runtime.validate_every=12", "runtime.validate_batches=3", "batch.sequences=4"});
  ASSERT_EQ(run(config), TrainingEnd::kFinished);
  Stream stream(Device{}, 1);
  int64_t told = 0;
  const WindowScores scores = score_by_loss(stream, {.checkpoint = directory_ / "run",
                                                     .data = directory_ / "data",
                                                     .progress = [&](int64_t done, int64_t all) {
                                                       EXPECT_EQ(done, ++told);
                                                       EXPECT_GT(all, 10);
                                                     }});
  EXPECT_EQ(scores.sequence_length, 112);
  EXPECT_EQ(static_cast<int64_t>(scores.scores.size()), told);
  // The splits are the same documents, and validation has seen its first 12 windows.
  const TokenDataset dataset(directory_ / "data", kTrainSplit, 257);
  const DataLoader loader(dataset, {.sequence_length = 112, .shuffle = false});
  double sum = 0;
  double count = 0;
  for (int64_t i = 0; i < 12; ++i) {
    MicroBatch window;
    loader.fill(i % loader.windows(), 1, window);
    const auto targets = std::count_if(window.targets.begin(), window.targets.end(),
                                       [](int32_t target) { return target >= 0; });
    sum += scores.scores[static_cast<size_t>(i % loader.windows())] * static_cast<double>(targets);
    count += static_cast<double>(targets);
  }
  const double validation =
      nlohmann::json::parse(metrics("run").back())["validation_loss"].get<double>();
  EXPECT_NEAR(sum / count, validation, 1e-5 * validation);
}

}  // namespace
}  // namespace tessera
