// Whole training runs whose layers are given blocks by what is measured.

#include <gtest/gtest.h>

#include "runtime/control/gate_control.h"
#include "tests/runtime/training_fixture.h"

namespace tessera {
namespace {

struct Change {
  int64_t step;
  int64_t layer;
  int64_t before;
  int64_t after;

  friend bool operator==(const Change&, const Change&) = default;
};
std::ostream& operator<<(std::ostream& out, const Change& change) {
  return out << "step " << change.step << " layer " << change.layer << ": " << change.before
             << " to " << change.after;
}

class GateTrainingTest : public support::TrainingFixture {
 protected:
  /// Sequences of 24 blocks; sparse from step 5 on, with 6 blocks of a layer's choice.
  TrainConfig config_of(const std::string& run, int64_t steps,
                        const std::vector<std::string>& more = {}) const {
    std::vector<std::string> all{concat("steps=", steps),
                                 "sparsity.dense_steps=2",
                                 "sparsity.gate_warmup_steps=2",
                                 "sparsity.transition_steps=2",
                                 "batch.sequences=4",
                                 "batch.micro_sequences=0",
                                 "batch.sequence_length=384",
                                 "data.document_boundaries=0",
                                 "model.attention.kept_blocks=6",
                                 "model.moe=",
                                 "checkpoint.every=0",
                                 "optimizer.learning_rate=0.002",
                                 "monitor.gate_every=2",
                                 "monitor.heat_map_every=4",
                                 "gate_control.method=KEPT_MASS",
                                 "gate_control.every=4",
                                 "gate_control.budgets=[0.25, 1.75]"};
    all.insert(all.end(), more.begin(), more.end());
    return config(run, all);
  }
  std::vector<Change> changes(const std::string& run) const {
    std::ifstream in(directory_ / run / "gate_changes.jsonl");
    std::vector<Change> all;
    for (std::string line; std::getline(in, line);) {
      const auto json = nlohmann::json::parse(line);
      all.push_back({json["step"], json["layer"], json["old"], json["new"]});
    }
    return all;
  }
  std::vector<int64_t> last_kept(const std::string& run) const {
    const auto json = nlohmann::json::parse(metrics(run).back());
    if (!json.contains("kept_of_layers")) return {json["kept_blocks"], json["kept_blocks"]};
    return json["kept_of_layers"];
  }
  std::string saved_control(const std::string& run, const std::string& step) const {
    return CheckpointReader(saved(run, step)).read_blob(kGateControlBlob);
  }
};

TEST_F(GateTrainingTest, ALayerWithTooLittleIsRecoveredAndThenNothingMoves) {
  run(config_of("a", 80));
  const std::vector<Change> all = changes("a");
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(all.front().layer, 0);
  EXPECT_EQ(all.front().before, 2);
  const std::vector<int64_t> kept = last_kept("a");
  EXPECT_GE(kept[0], 4);
  EXPECT_NEAR(static_cast<double>(kept[0] + kept[1]), 12, 1);
  for (const Change& change : all) EXPECT_LT(change.step, 50) << change;
}

// Probes and measures are of batches as the step's, from where the data of the next step begins.
TEST_F(GateTrainingTest, ASearchGoesOnBitByBitWhileSequencesGrow) {
  const std::vector<std::string> more{
      "gate_control.method=SEARCH",
      "gate_control.probe_batches=2",
      "gate_control.spread=0.5",
      "curriculum.sequence_length=[{value: 192}, {step: 11 value: 384}]",
      "checkpoint.every=1",
      "checkpoint.keep_last=99"};
  run(config_of("whole", 12, more));
  for (const std::string step : {"00000007", "00000010"}) {
    const std::string resumed = "from" + step;
    run(config_of(resumed, 12, more), from("whole", step));
    expect_same_state(saved("whole", "00000012"), saved(resumed, "00000012"));
    EXPECT_EQ(saved_control(resumed, "00000012"), saved_control("whole", "00000012"));
  }
  run_on(MeshShape{2, 1, 2, 1}, config_of("mesh", 12, more));
  expect_close_state(saved("mesh", "00000012"), saved("whole", "00000012"), 2e-5);
  EXPECT_EQ(changes("mesh"), changes("whole"));
}

TEST_F(GateTrainingTest, AResumedRunGoesOnBitByBit) {
  const std::vector<std::string> saves{"checkpoint.every=10"};
  run(config_of("whole", 24, saves));
  run(config_of("parts", 24, saves), from("whole", "00000010"));
  expect_same_state(saved("parts", "00000024"), saved("whole", "00000024"));
  EXPECT_EQ(saved_control("parts", "00000024"), saved_control("whole", "00000024"));
  EXPECT_NE(saved_control("whole", "00000010"), saved_control("whole", "00000024"));
  EXPECT_EQ(last_kept("parts"), last_kept("whole"));
  const std::vector<Change> all = changes("whole");
  const std::vector<Change> rest = changes("parts");
  ASSERT_FALSE(rest.empty());
  ASSERT_GT(all.size(), rest.size());
  EXPECT_TRUE(
      std::equal(rest.begin(), rest.end(), all.end() - static_cast<std::ptrdiff_t>(rest.size())));
}

TEST_F(GateTrainingTest, EveryMeshGivesLayersTheSame) {
  run(config_of("one", 16));
  const std::vector<Change> expected = changes("one");
  ASSERT_FALSE(expected.empty());
  for (const MeshShape& mesh : {MeshShape{1, 1, 1, 2}, {1, 1, 2, 1}, {2, 1, 2, 1}}) {
    const std::string name = to_string(mesh);
    run_on(mesh, config_of(name, 16));
    EXPECT_EQ(changes(name), expected) << name;
    support::expect_relative(metric(name, "loss"), metric("one", "loss"), 2e-5, name);
  }
}

TEST_F(GateTrainingTest, MeasuresChangeNothingElse) {
  const std::vector<std::string> still{"gate_control.method=NONE", "gate_control.budgets=[1, 1]"};
  std::vector<std::string> unmeasured = still;
  unmeasured.insert(unmeasured.end(), {"monitor.gate_every=0", "monitor.heat_map_every=0"});
  run(config_of("measured", 8, still));
  run(config_of("unmeasured", 8, unmeasured));
  expect_same_state(saved("measured", "00000008"), saved("unmeasured", "00000008"));
}

TEST_F(GateTrainingTest, ASearchProbesOnEveryRankAlike) {
  const std::vector<std::string> search{"gate_control.method=SEARCH", "gate_control.every=4",
                                        "gate_control.probe_batches=2", "gate_control.spread=0.7"};
  run(config_of("one", 16, search));
  run_on(2, config_of("two", 16, search));
  EXPECT_EQ(changes("two"), changes("one"));
  EXPECT_EQ(nlohmann::json::parse(saved_control("one", "00000016"))["round"], 3);
}

}  // namespace
}  // namespace tessera
