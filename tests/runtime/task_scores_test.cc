#include "runtime/score/task_scores.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "checkpoint/safetensors.h"
#include "runtime/data/task_dataset.h"
#include "runtime/score/score.h"
#include "tests/runtime/training_fixture.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

class TaskScoresTest : public support::TrainingFixture {
 protected:
  static constexpr int64_t kSamples = 6;

  TaskScoresTest() {
    make_task_dataset(
        {.task = task_, .samples = 20, .validation = kSamples, .output = directory_ / "task"});
  }

  /// A run on the task; its directory.
  fs::path trained(const std::string& name, const std::vector<std::string>& more = {}) {
    std::vector<std::string> overrides{"runtime.validate_every=12", "runtime.validate_batches=3",
                                       "data.document_boundaries=false"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    TrainConfig of = config(name, overrides);
    of.mutable_data()->set_path(directory_ / "task");
    EXPECT_EQ(run(of), TrainingEnd::kFinished);
    return directory_ / name;
  }
  TaskScores scores(const fs::path& run, int64_t step = 0) const {
    Stream stream(Device{}, 1);
    return task_scores(stream, {.checkpoint = run, .data = directory_ / "task", .step = step});
  }
  /// The share of right answers by the logits of `tessera score`.
  double accuracy_by_score(const fs::path& run) const {
    std::vector<int32_t> tokens;
    std::vector<std::pair<int64_t, int32_t>> answers;  // asking token and answer
    for (int64_t i = 0; i < kSamples; ++i) {
      const TaskSample sample = make_sample(task_, kValidationSplit, i);
      for (const Answer& a : sample.answers) {
        answers.emplace_back(std::ssize(tokens) + a.position - 1,
                             sample.tokens[static_cast<size_t>(a.position)]);
      }
      tokens.insert(tokens.end(), sample.tokens.begin(), sample.tokens.end());
    }
    const ConstTensorView view(tokens.data(), DType::kI32, {kSamples, task_.length}, Device{});
    const SafetensorsTensor named{.name = "tokens", .data = view};
    write_safetensors(directory_ / "in.safetensors", {&named, 1}, {});
    Stream stream(Device{}, 1);
    score(stream, {.checkpoint = run,
                   .input = directory_ / "in.safetensors",
                   .output = directory_ / "out.safetensors"});
    const SafetensorsFile out(directory_ / "out.safetensors");
    std::vector<float> logits(tokens.size() * 257);
    out.read("logits", TensorView(logits.data(), DType::kF32, {kSamples, task_.length, 257}, {}));
    int hits = 0;
    for (const auto& [token, answer] : answers) {
      const auto row = logits.begin() + token * 257;
      hits += std::max_element(row, row + 257) - row == answer ? 1 : 0;
    }
    return static_cast<double>(hits) / static_cast<double>(answers.size());
  }

  TaskOptions task_{.kind = TaskKind::kMqar, .length = 112, .pairs = 10, .values = 2};
};

TEST_F(TaskScoresTest, AccuracyIsThatOfTheLogitsAndOfTheValidationOfTheRun) {
  const fs::path run = trained("a");
  const TaskScores found = scores(run);
  EXPECT_EQ(found.kind, "mqar");
  EXPECT_EQ(found.samples, kSamples);
  EXPECT_EQ(found.answers, kSamples * 10);
  EXPECT_GT(found.accuracy, 0);
  EXPECT_DOUBLE_EQ(found.accuracy, accuracy_by_score(run));
  std::ifstream in(run / "metrics.jsonl");
  std::string last;
  for (std::string line; std::getline(in, line);) last = line;
  EXPECT_DOUBLE_EQ(nlohmann::json::parse(last)["accuracy"].get<double>(), found.accuracy);
  EXPECT_EQ(nlohmann::json::parse(to_json(found))["accuracy"].get<double>(), found.accuracy);
}

TEST_F(TaskScoresTest, FarAnswersAndForcedBlocksFollowFromPositions) {
  const TaskScores found = scores(trained("a"));
  EXPECT_EQ(found.window, 24);
  EXPECT_EQ(found.kept_blocks, 2);
  int64_t far = 0;
  int64_t forced = 0;
  int64_t sources = 0;
  for (int64_t i = 0; i < kSamples; ++i) {
    for (const Answer& a : make_sample(task_, kValidationSplit, i).answers) {
      far += a.position - 1 - a.source >= 24 ? 1 : 0;
      forced += a.source < 16 || (a.position - 1) / 16 == a.source / 16 ? 1 : 0;
      ++sources;
    }
  }
  EXPECT_EQ(found.far_answers, far);
  ASSERT_EQ(found.block_recall.size(), 2u);
  for (const double recall : found.block_recall) {
    EXPECT_GE(recall, static_cast<double>(forced) / static_cast<double>(sources));
    EXPECT_LT(recall, 1);
  }
  EXPECT_GT(found.kept_share, 0.4);
  EXPECT_LT(found.kept_share, 0.9);
  // Sink and own block, and two of the others that each asking token sees.
  double asking = 0;
  for (int64_t i = 0; i < kSamples; ++i) {
    for (const Answer& answer : make_sample(task_, kValidationSplit, i).answers) {
      asking += 4.0 / static_cast<double>((answer.position - 1) / 16 + 1);
    }
  }
  EXPECT_NEAR(found.asking_kept_share, asking / static_cast<double>(sources), 1e-12);
}

TEST_F(TaskScoresTest, EarlierStepsSeeEverything) {
  const fs::path run = trained("a");
  const TaskScores dense = scores(run, 1);
  EXPECT_EQ(dense.window, 112);
  EXPECT_TRUE(dense.block_recall.empty());
  EXPECT_EQ(dense.kept_share, 1);
  const TaskScores warm_up = scores(run, 4);
  EXPECT_EQ(warm_up.block_recall, (std::vector<double>{1, 1}));
  EXPECT_EQ(warm_up.kept_share, 1);
  EXPECT_EQ(warm_up.accuracy, dense.accuracy);
}

TEST_F(TaskScoresTest, RandomBlocksTeachTheGateNothingAndRunsWithoutGlobalGroupsHaveNone) {
  const fs::path random = trained("random", {"model.attention.selection=RANDOM"});
  ASSERT_EQ(scores(random).block_recall.size(), 2u);
  const CheckpointReader first(random / "checkpoints/step-00000005");
  const CheckpointReader last(random / "checkpoints/step-00000012");
  int unchanged = 0;
  for (const TensorFacts& facts : last.tensors()) {
    if (facts.kind != TensorKind::kParameter ||
        facts.name.find("attention.gate.") == std::string::npos || facts.name.ends_with("weight")) {
      continue;  // the weight decay moves matrices
    }
    EXPECT_EQ(support::to_doubles(whole(first, facts)), support::to_doubles(whole(last, facts)));
    ++unchanged;
  }
  EXPECT_EQ(unchanged, 4);  // pool and width of two layers
  const TaskScores local = scores(trained("local", {"model.attention.global_groups=0"}));
  EXPECT_TRUE(local.block_recall.empty());
  EXPECT_GT(local.accuracy, 0);
}

TEST_F(TaskScoresTest, WrongArgumentsAreNamed) {
  const fs::path run = trained("a", {"steps=1", "sparsity=", "runtime.validate_every=0"});
  Stream stream(Device{}, 1);
  EXPECT_EQ(
      thrown_by([&] { task_scores(stream, {.checkpoint = run, .data = directory_ / "data"}); }),
      "2: --data " + (directory_ / "data").string() +
          " has no answers; make a data set with tessera data task");
  EXPECT_EQ(thrown_by([&] {
              task_scores(stream, {.checkpoint = run, .data = directory_ / "task", .samples = 7});
            }),
            "2: --samples is 7, but " + (directory_ / "task/validation").string() + " has 6");
  EXPECT_EQ(thrown_by([&] {
              task_scores(stream, {.checkpoint = directory_ / "none", .data = directory_ / "task"});
            }).substr(0, 3),
            "66:");
}

}  // namespace
}  // namespace tessera
