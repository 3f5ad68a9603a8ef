// Runs in which the curriculum changes everything that it can: stopped in every stage, and on
// meshes, they are the undisturbed run of one rank.

#include <gtest/gtest.h>

#include <filesystem>

#include "runtime/curriculum/window_scores.h"
#include "runtime/data/task_dataset.h"
#include "tests/runtime/training_fixture.h"

namespace tessera {
namespace {

using support::expect_relative;

class CurriculumTrainingTest : public support::TrainingFixture {
 protected:
  CurriculumTrainingTest() {
    std::vector<std::vector<int32_t>> task;
    for (int32_t d = 0; d < 40; ++d) task.push_back({d, d + 1, 7, d, d + 1, 7, 256});
    std::filesystem::create_directories(directory_ / "task");
    write_test_dataset(directory_ / "task", task);
    const TokenDataset dataset(directory_ / "data", kTrainSplit, 257);
    write_scores(directory_ / "scores", score_by_rarity(dataset, 28));
  }

  /// 12 steps: dense 1-2, gate warm-up 3-4, transition 5-8, tuning 9-12; the batch changes within
  /// the dense stage, the transition and the tuning.
  TrainConfig curriculum(const std::string& run, std::vector<std::string> more = {}) const {
    std::vector<std::string> all{
        "batch.sequences=8",
        "batch.micro_sequences=0",
        "checkpoint.every=1",
        "checkpoint.keep_last=99",
        "sparsity.dense_refresh=3",
        "optimizer.epsilon=1e-4",
        "curriculum.sequence_length=[{value: 56}, {step: 7 value: 112}]",
        "curriculum.sequences=[{value: 4}, {step: 2 value: 8}, {step: 10 value: 4}]",
        concat("curriculum.sources={name: \"task\" path: \"", (directory_ / "task").string(),
               "\" weight: [{step: 2 value: 0.1}, {step: 8 value: 0.5}]}"),
        "curriculum.difficulty=[{value: 0.4}, {step: 6 value: 0.7}, {step: 9 value: 1}]",
        concat("curriculum.scores=\"", (directory_ / "scores").string(), "\"")};
    all.insert(all.end(), more.begin(), more.end());
    return config(run, all);
  }
  RunProgress progress(const std::string& run, const std::string& step) const {
    return parse_progress(CheckpointReader(saved(run, step)).read_blob("progress"));
  }
  static std::string name_of_step(int step) {
    std::string digits = std::to_string(step);
    return std::string(8 - digits.size(), '0') + digits;
  }
};

TEST_F(CurriculumTrainingTest, StoppedInEveryStageItHasTheSameBits) {
  ASSERT_EQ(run(curriculum("whole")), TrainingEnd::kFinished);
  const std::vector<std::string> whole = metrics("whole");
  ASSERT_EQ(whole.size(), 12u);
  for (const int step : {1, 3, 5, 6, 7, 9, 11}) {
    const std::string resumed = concat("from", step);
    ASSERT_EQ(run(curriculum(resumed), from("whole", name_of_step(step))), TrainingEnd::kFinished);
    expect_same_state(saved("whole", "00000012"), saved(resumed, "00000012"));
    EXPECT_EQ(metrics(resumed), std::vector<std::string>(whole.begin() + step, whole.end()));
  }
  EXPECT_EQ(metric("whole", "sequence_length"),
            (std::vector<double>{56, 56, 56, 56, 56, 56, 112, 112, 112, 112, 112, 112}));
  EXPECT_EQ(metric("whole", "sequences"),
            (std::vector<double>{8, 16, 16, 16, 16, 16, 8, 8, 8, 4, 4, 4}));
  const RunProgress end = progress("whole", "00000012");
  // 4 x 112 tokens in steps 1 and 10 to 12, 8 x 112 in the others.
  EXPECT_EQ(end.consumed_tokens, 112 * (4 * 4 + 8 * 8));
  EXPECT_EQ(end.data.samples, 8 + 5 * 16 + 3 * 8 + 3 * 4);
  EXPECT_EQ(end.data.tokens.size(), 2u);
  EXPECT_GT(end.data.tokens.at("task"), 112 * 8);
}

TEST_F(CurriculumTrainingTest, MeshesComputeWhatOneRankDoes) {
  run_on(MeshShape{}, curriculum("one"));
  for (const MeshShape& mesh : {MeshShape{2, 1, 1, 1}, {1, 1, 2, 1}, {2, 1, 1, 2}, {1, 2, 2, 1}}) {
    const std::string name = to_string(mesh);
    run_on(mesh, curriculum(name));
    for (const char* metric_name : {"loss", "gradient_norm", "gate_kl", "sparsity"}) {
      expect_relative(metric(name, metric_name), metric("one", metric_name), 2e-5,
                      concat(name, " ", metric_name));
    }
    expect_close_state(saved(name, "00000012"), saved("one", "00000012"), 2e-5);
    EXPECT_EQ(progress(name, "00000012"), progress("one", "00000012"));
  }
}

TEST_F(CurriculumTrainingTest, InTheTransitionItGoesOnOnAnotherMesh) {
  run_on(MeshShape{}, curriculum("one"));
  run_on(MeshShape{1, 1, 2, 2}, curriculum("first"));
  for (const int step : {5, 6, 7}) {
    const std::string name = concat("second", step);
    run_on(MeshShape{2, 2, 1, 1}, curriculum(name), from("first", name_of_step(step)));
    const std::vector<double> all = metric("one", "loss");
    expect_relative(metric(name, "loss"), std::vector<double>(all.begin() + step, all.end()), 2e-5,
                    name);
    expect_close_state(saved(name, "00000012"), saved("one", "00000012"), 2e-5);
  }
}

// The dense stage learns fast, the transition a hundredth of that: it cannot keep what was
// promised.
TEST_F(CurriculumTrainingTest, TheTransitionWaitsForTheLossAndGoesOnBitByBit) {
  const std::vector<std::string> more{"steps=20",
                                      "sparsity.dense_steps=6",
                                      "sparsity.gate_warmup_steps=2",
                                      "checkpoint.every=1",
                                      "sparsity.transition_steps=3",
                                      "checkpoint.keep_last=99",
                                      "sparsity.guard_window=2",
                                      "sparsity.guard_tolerance=0.01",
                                      "sparsity.guard_limit=5",
                                      "sparsity.dense_refresh=0",
                                      "optimizer.learning_rate=0.02",
                                      "schedule.shape=WSD",
                                      "schedule.warmup_steps=0",
                                      "schedule.decay_steps=14",
                                      "schedule.final_fraction=0"};
  ASSERT_EQ(run(config("whole", more)), TrainingEnd::kFinished);
  const RunProgress end = progress("whole", "00000020");
  EXPECT_EQ(end.held_steps, 5);
  const std::vector<double> windows = metric("whole", "window");
  const std::vector<double> strengths = metric("whole", "gate_strength");
  // Where it waits, nothing of the plan moves; then it goes on to the end.
  int64_t waited = 0;
  for (size_t i = 7; i < 14; ++i) {
    if (windows[i] != windows[i - 1] || strengths[i] != strengths[i - 1]) continue;
    ++waited;
  }
  EXPECT_EQ(waited, 5);
  EXPECT_EQ(strengths[14], 1 - 0x1p-10);
  for (const int step : {4, 8, 10, 13}) {
    const std::string resumed = concat("from", step);
    ASSERT_EQ(run(config(resumed, more), from("whole", name_of_step(step))),
              TrainingEnd::kFinished);
    expect_same_state(saved("whole", "00000020"), saved(resumed, "00000020"));
    EXPECT_EQ(progress(resumed, "00000020"), end);
  }
}

// A model that has learned a little misses what its window of 2 tokens leaves out.
TEST_F(CurriculumTrainingTest, ThePairedGuardMeasuresWhatSparsityCostsAndWaitsBitByBit) {
  const std::vector<std::string> more{
      "steps=40", "optimizer.learning_rate=0.02", "model.attention.window=2",
      "sparsity={dense_steps: 28 gate_warmup_steps: 2 transition_steps: 4 dense_refresh: 3"
      " guard: PAIRED guard_window: 2 guard_limit: 4}"};
  ASSERT_EQ(run(curriculum("whole", more)), TrainingEnd::kFinished);
  EXPECT_EQ(progress("whole", "00000040").held_steps, 4);
  std::vector<int> compared;
  for (const std::string& line : metrics("whole")) {
    const auto json = nlohmann::json::parse(line);
    if (!json.contains("sparsity_cost")) continue;
    const int step = json["step"].get<int>();
    compared.push_back(step);
    // A dense run that begins with the same weights sees the same batch.
    const std::string dense = concat("dense", step);
    std::vector<std::string> full = more;
    full.insert(full.end(), {"sparsity={}", concat("steps=", step)});
    ASSERT_EQ(run(curriculum(dense, full), from("whole", name_of_step(step - 1))),
              TrainingEnd::kFinished);
    const double cost = json["loss"].get<double>() - metric(dense, "loss").back();
    EXPECT_NEAR(json["sparsity_cost"].get<double>(), cost, 1e-5) << step;
  }
  EXPECT_EQ(compared, (std::vector<int>{29, 31, 35}));  // step 33 is a dense refresh
  for (const int step : {30, 31, 33}) {
    const std::string resumed = concat("from", step);
    ASSERT_EQ(run(curriculum(resumed, more), from("whole", name_of_step(step))),
              TrainingEnd::kFinished);
    expect_same_state(saved("whole", "00000040"), saved(resumed, "00000040"));
  }
  run_on(MeshShape{1, 2, 1, 2}, curriculum("mesh", more));
  EXPECT_EQ(progress("mesh", "00000040"), progress("whole", "00000040"));
  expect_relative(metric("mesh", "loss"), metric("whole", "loss"), 1e-3, "mesh");
}

TEST_F(CurriculumTrainingTest, GatesThatKeepEverythingAreNotSeenInTheLoss) {
  ASSERT_EQ(run(config("dense", {"sparsity={}", "optimizer.epsilon=1e-4"})),
            TrainingEnd::kFinished);
  const std::vector<std::string> gated{
      "sparsity={start: GATE_WARMUP gate_warmup_steps: 12 kl: 0 z_loss: 0}",
      "optimizer.epsilon=1e-4"};
  ASSERT_EQ(run(config("gated", gated)), TrainingEnd::kFinished);
  expect_relative(metric("gated", "loss"), metric("dense", "loss"), 1e-5, "loss");
}

TEST_F(CurriculumTrainingTest, ItBeginsInAnyStage) {
  const auto stages = [&](const std::string& run_name, const std::string& sparsity) {
    EXPECT_EQ(run(config(run_name, {"sparsity=" + sparsity, "steps=4"})), TrainingEnd::kFinished);
    std::string names;
    for (const std::string& line : metrics(run_name)) {
      names += nlohmann::json::parse(line)["stage"].get<std::string>() + ",";
    }
    return names;
  };
  EXPECT_EQ(stages("a", "{start: GATE_WARMUP gate_warmup_steps: 1 transition_steps: 2}"),
            "gate warm-up,transition,transition,tuning,");
  EXPECT_EQ(stages("b", "{start: TRANSITION transition_steps: 2}"),
            "transition,transition,tuning,tuning,");
  EXPECT_EQ(stages("c", "{start: TUNING}"), "tuning,tuning,tuning,tuning,");
}

// Its samples are 56 tokens long, few of which are targets.
TEST_F(CurriculumTrainingTest, ATaskIsASource) {
  const std::filesystem::path path = directory_ / "sums";
  make_task_dataset({.task = {.kind = TaskKind::kArithmetic, .length = 56, .pairs = 4},
                     .samples = 40,
                     .validation = 2,
                     .output = path});
  const auto source = [&](const std::string& weight) {
    return concat("curriculum.sources={name: \"sums\" path: \"", path.string(),
                  "\" weight: {value: ", weight, "}}");
  };
  ASSERT_EQ(run(curriculum("whole", {source("0.5")})), TrainingEnd::kFinished);
  ASSERT_EQ(run(curriculum("resumed", {source("0.5")}), from("whole", "00000006")),
            TrainingEnd::kFinished);
  expect_same_state(saved("whole", "00000012"), saved("resumed", "00000012"));
  const std::string lengths = "curriculum.sequence_length=[{value: 28}, {step: 7 value: 112}]";
  support::expect_error(
      [&] {
        run(curriculum("cut", {source("0.5"), lengths}));
      },
      concat("curriculum.sequence_length is 28 from step 1 on, but the samples "
             "of ",
             (path / kTrainSplit).string(), " have 56 tokens: "));
}

TEST_F(CurriculumTrainingTest, SourcesMustSpeakTheSameLanguage) {
  DatasetDescription description = read_description(directory_ / "task");
  description.end_of_document = 3;
  write_description(directory_ / "task", description);
  try {
    run(curriculum("other"));
    ADD_FAILURE() << "it ran";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    EXPECT_TRUE(std::string(error.what()).starts_with("source task: ")) << error.what();
  }
}

}  // namespace
}  // namespace tessera
