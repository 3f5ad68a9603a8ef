#include "runtime/choose/choose_groups.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kernels/core/copy.h"
#include "kernels/core/random.h"
#include "runtime/choose/reordered_state.h"
#include "runtime/config/text_writer.h"
#include "runtime/data/task_dataset.h"
#include "runtime/export/hugging_face.h"
#include "runtime/generate/loaded_model.h"
#include "tests/runtime/training_fixture.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

/// Four KV groups of two heads, one of them global; the window has 24 tokens.
class ChooseGroupsTest : public support::TrainingFixture {
 protected:
  TrainConfig config_of(const std::string& run, const std::vector<std::string>& more = {}) const {
    std::vector<std::string> overrides{"model.heads=8",
                                       "model.kv_heads=4",
                                       "model.attention.sink_tokens=0",
                                       "batch.sequences=4",
                                       "sparsity.dense_steps=6",
                                       "sparsity.gate_warmup_steps=2",
                                       "sparsity.transition_steps=3"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    TrainConfig config = this->config(run, overrides);
    resolve_mesh(config, 1);
    return config;
  }
  /// A run of four dense steps.
  fs::path dense_run() {
    TrainConfig config = config_of("dense");
    config.set_steps(4);
    config.mutable_sparsity()->set_dense_steps(100);
    EXPECT_EQ(run(config), TrainingEnd::kFinished);
    return directory_ / "dense";
  }
  ChooseReport choose(const fs::path& checkpoint, const std::string& output,
                      const ChooseOptions& like = {.steps = 3}, int threads = 1) {
    ChooseOptions options = like;
    options.checkpoint = checkpoint;
    options.output = directory_ / output;
    if (options.probe.data.empty()) options.probe.data = directory_ / "data";
    options.probe.sequences = 4;
    Stream stream(Device{}, threads);
    return choose_groups(stream, options);
  }
  /// The checkpoint at `from` with its groups in another order, as the run `to`.
  fs::path reordered(const fs::path& from, const std::vector<GroupOrder>& orders,
                     const std::string& to, int64_t piece_bytes = int64_t{1} << 28) const {
    const CheckpointReader reader(from);
    ReorderedState state(reader, orders, stored_config(reader), piece_bytes);
    CheckpointStore store(directory_ / to);
    return save_in_pieces(store, state).path;
  }
  std::vector<nlohmann::json> changes(const std::string& run) const {
    std::vector<nlohmann::json> lines;
    std::ifstream in(directory_ / run / "gate_changes.jsonl");
    for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
    return lines;
  }

  const std::vector<GroupOrder> orders_{{2, 0, 1, 3}, {1, 3, 0, 2}};
  const std::vector<GroupOrder> inverses_{{1, 2, 0, 3}, {2, 0, 3, 1}};
};

TEST_F(ChooseGroupsTest, OrderAndInverseGiveBackEveryBitInAnyPieces) {
  EXPECT_EQ(run(config_of("dense", {"steps=2", "runtime.precision=BF16", "sparsity="})),
            TrainingEnd::kFinished);
  const fs::path from = saved("dense", "00000002");
  const fs::path there = reordered(from, orders_, "there");
  expect_same_state(there, reordered(from, orders_, "pieces", 5000));
  const fs::path back = reordered(there, inverses_, "back");
  expect_same_state(from, back);
  EXPECT_EQ(CheckpointReader(back).facts().id.step, 2);
  EXPECT_FALSE(CheckpointReader(back).facts().next_step_digest);
  // What has parts for the groups, and nothing else, is another: masters and moments too.
  std::map<TensorKind, int> kinds;
  for (const TensorDifference& one :
       compare_checkpoints(CheckpointReader(from), CheckpointReader(there))) {
    ++kinds[one.kind];
    EXPECT_TRUE(group_axis(one.name)) << one.name;
  }
  EXPECT_EQ(kinds, (std::map<TensorKind, int>{{TensorKind::kParameter, 12},
                                              {TensorKind::kMaster, 10},
                                              {TensorKind::kExpAvg, 12},
                                              {TensorKind::kExpAvgSq, 12}}));
}

// The sums over heads have another order, which is rounding in f32: 1e-6 of a loss, and in
// parameters what two steps of Adam make of it, where moments are of the size of their rounding.
TEST_F(ChooseGroupsTest, TheDenseModelLearnsTheSameInAnyOrder) {
  const fs::path source = dense_run() / "checkpoints/step-00000004";
  const auto go_on = [&](const std::string& name) {
    TrainConfig config = config_of(name);
    config.set_steps(6);
    config.mutable_sparsity()->set_dense_steps(100);
    EXPECT_EQ(run(config), TrainingEnd::kFinished);
  };
  reordered(source, std::vector<GroupOrder>(2, GroupOrder{0, 1, 2, 3}), "plain");
  reordered(source, orders_, "other");
  go_on("plain");
  go_on("other");
  support::expect_relative(metric("other", "loss"), metric("plain", "loss"), 2e-6, "loss");
  support::expect_relative(metric("other", "gradient_norm"), metric("plain", "gradient_norm"), 2e-5,
                           "gradient norm");
  expect_close_state(reordered(saved("other", "00000006"), inverses_, "back"),
                     saved("plain", "00000006"), 1e-4);
}

/// A model in which group `alone[layer]` of each layer does all that attention does, and text that
/// it has written with full attention, which no other model predicts better.
class OneGroup : public ChooseGroupsTest {
 protected:
  static constexpr int64_t kLength = 48;

  OneGroup()
      : config_(config_of("known",
                          {"sparsity=", "batch.sequence_length=48", "model.attention.window=8"})),
        tiny_(config_) {
    for (size_t layer = 0; layer < alone_.size(); ++layer) leave_alone(layer);
    scale("head.weight", 2);
    save();
    write();
  }
  void scale(const std::string& name, double by) {
    for (Parameter& parameter : tiny_.store.all()) {
      if (parameter.name != name) continue;
      for (float& value : parameter.value.as<float>()) value *= static_cast<float>(by);
    }
  }
  /// The columns of all other groups become 0.
  void leave_alone(size_t layer) {
    const std::string name = concat("layers.", layer, ".attention.out.weight");
    for (Parameter& parameter : tiny_.store.all()) {
      if (parameter.name != name) continue;
      const auto columns = static_cast<size_t>(parameter.shard.length);
      const size_t group_columns = 16;
      const std::span<float> values = parameter.value.as<float>();
      for (size_t i = 0; i < values.size(); ++i) {
        const auto group =
            (static_cast<size_t>(parameter.shard.begin) + i % columns) / group_columns;
        values[i] *= group == alone_[layer] ? 12.0f : 0.0f;
      }
    }
  }
  void save() {
    SelfCommunicator world;
    const ProcessMesh mesh(world, {});
    AdamwOptimizer optimizer(config_.optimizer(), tiny_.store, Device{});
    TrainState state{.store = tiny_.store,
                     .optimizer = optimizer,
                     .guard = {},
                     .progress = {},
                     .hooks = {},
                     .tokenizer_model = load_tokenizer_model(directory_ / "data")};
    CheckpointStore store(directory_ / "known");
    const StateContents contents = describe_state(mesh, state, config_);
    EXPECT_TRUE(store.save(contents.contents).committed);
  }
  /// Documents of kLength tokens, each drawn from what the model gives them.
  void write() {
    constexpr int64_t kRows = 24;
    const int64_t vocabulary = config_.model().vocabulary();
    std::vector<int32_t> tokens(kRows * kLength);
    std::vector<int32_t> starts(kRows + 1);
    for (size_t row = 0; row < starts.size(); ++row) {
      starts[row] = static_cast<int32_t>(row) * kLength;
    }
    const auto draw = [](size_t at) { return philox(7, 0, at)[0]; };
    for (size_t row = 0; row < kRows; ++row) {
      tokens[row * kLength] = static_cast<int32_t>(draw(row * kLength) % 256);
    }
    std::vector<float> logits(tokens.size() * static_cast<size_t>(vocabulary));
    Arena arena(Device{}, int64_t{512} << 20);
    for (size_t time = 1; time < kLength; ++time) {
      Transformer::Run run = tiny_.alone.run(tiny_.stream, arena, {.window = kLength}, tiny_.sums);
      tiny_.model.logits(run,
                         {.tokens = host_view(tokens),
                          .targets = host_view(tokens),
                          .starts = host_view(starts),
                          .sequences = kRows},
                         host_view(logits).reshape({std::ssize(tokens), vocabulary}));
      for (size_t row = 0; row < kRows; ++row) {
        const size_t before = row * kLength + time - 1;
        const auto at = logits.begin() + static_cast<int64_t>(before) * vocabulary;
        std::vector<double> sums;
        double sum = 0;
        for (int64_t i = 0; i < 256; ++i) sums.push_back(sum += std::exp(at[i]));
        const double wanted = sum * draw(before + 1) / 0x1p32;
        tokens[before + 1] =
            static_cast<int32_t>(std::ranges::lower_bound(sums, wanted) - sums.begin());
      }
    }
    std::vector<std::vector<int32_t>> documents;
    for (size_t row = 0; row < kRows; ++row) {
      const auto first = tokens.begin() + static_cast<int64_t>(row) * kLength;
      documents.emplace_back(first, first + kLength - 1);  // and the end of a document
    }
    fs::create_directories(directory_ / "text");
    write_test_dataset(directory_ / "text", documents);
  }

  const std::vector<size_t> alone_{3, 2};
  const TrainConfig config_;
  support::TinyModel tiny_;
};

TEST_F(OneGroup, IsFoundAndWritten) {
  const ChooseOptions options{.probe = {.data = directory_ / "text"}, .steps = 40};
  const ChooseReport report = choose(directory_ / "known", "chosen", options);
  ASSERT_EQ(report.layers.size(), 2u);
  EXPECT_EQ(report.layers[0].order, (GroupOrder{3, 0, 1, 2}));
  EXPECT_EQ(report.layers[1].order, (GroupOrder{2, 0, 1, 3}));
  for (size_t layer = 0; layer < 2; ++layer) {
    for (size_t group = 0; group < 4; ++group) {
      const double alpha = report.layers[layer].alpha[group];
      EXPECT_NEAR(alpha, group == alone_[layer] ? 1 : 0, 0.2) << layer << " " << group;
    }
  }
  // The others add nothing, be they global or not.
  EXPECT_NEAR(report.after.loss, report.all.loss, 1e-6);
  EXPECT_GT(report.before.loss, report.all.loss + 0.02);
  EXPECT_EQ(report.step, 0);
  EXPECT_EQ(report.window, 8);
  EXPECT_EQ(report.length, kLength);

  const std::vector<nlohmann::json> lines = changes("chosen");
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[1]["what"], "global_groups");
  EXPECT_EQ(lines[1]["step"], 0);
  EXPECT_EQ(lines[1]["layer"], 1);
  EXPECT_EQ(lines[1]["old"], std::vector<int>{0});
  EXPECT_EQ(lines[1]["new"], std::vector<int>{2});
  EXPECT_EQ(lines[1]["alpha"].get<std::vector<double>>(), report.layers[1].alpha);
  EXPECT_NE(lines[1]["reason"].get<std::string>().find("of the others at most"), std::string::npos);

  const CheckpointReader written(report.checkpoint);
  EXPECT_EQ(stored_config(written).run_dir(), (directory_ / "chosen").string());
  for (const TensorFacts& facts : written.tensors()) {
    if (facts.kind != TensorKind::kParameter || !facts.name.ends_with("attention.out.weight")) {
      continue;
    }
    const std::vector<double> values = support::to_doubles(whole(written, facts));
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(values[i] != 0, i % 64 < 16) << facts.name << " " << i;
    }
  }
}

TEST_F(OneGroup, IsTheSameToTheBitWithAnyNumberOfThreads) {
  const ChooseOptions options{.probe = {.data = directory_ / "text"}, .steps = 3};
  const ChooseReport one = choose(directory_ / "known", "one", options);
  const ChooseReport three = choose(directory_ / "known", "three", options, 3);
  for (size_t layer = 0; layer < 2; ++layer) {
    EXPECT_EQ(one.layers[layer].alpha, three.layers[layer].alpha);
  }
  EXPECT_EQ(one.after.loss, three.after.loss);
  expect_same_state(one.checkpoint, three.checkpoint);
}

TEST_F(ChooseGroupsTest, TrainingGoesOnThroughAllStagesOnAnyMesh) {
  const ChooseReport report = choose(dense_run(), "alone", {.steps = 8, .rate = 0.2});
  EXPECT_EQ(report.step, 4);
  fs::copy(directory_ / "alone", directory_ / "two", fs::copy_options::recursive);
  EXPECT_EQ(run(config_of("alone")), TrainingEnd::kFinished);
  run_on(MeshShape{.data = 2}, config_of("two"));
  EXPECT_EQ(CheckpointReader(saved("alone", "00000012")).facts().id.step, 12);
  EXPECT_EQ(metric("alone", "step").front(), 5);
  support::expect_relative(metric("two", "loss"), metric("alone", "loss"), 1e-4, "loss");
}

TEST_F(ChooseGroupsTest, WithoutAnyChangeTheStateIsTheOldOne) {
  const fs::path dense = dense_run();
  const ChooseReport report = choose(dense, "chosen", {.steps = 1});
  const fs::path same =
      reordered(report.checkpoint,
                {places_of(report.layers[0].order), places_of(report.layers[1].order)}, "back");
  expect_same_state(saved("dense", "00000004"), same);
  EXPECT_EQ(to_json(report).find(
                "{\"step\":4,\"global_groups\":1,\"global_groups_before\":1,\"window\":24,"),
            0u);
}

// Gates are functions of the seed, their name and place: those that come later are the ones that
// the run would have had from the start, but for the decay of their matrices in its four steps.
TEST_F(ChooseGroupsTest, MoreOrFewerGroupsAreGlobalWhenAskedForAndGatesFollow) {
  const fs::path dense = dense_run();
  const ChooseReport more = choose(dense, "more", {.global_groups = 3, .steps = 8, .rate = 0.2});
  EXPECT_EQ(more.global_groups, 3);
  EXPECT_EQ(more.global_groups_before, 1);
  for (const LayerChoice& layer : more.layers) {
    EXPECT_NEAR(std::accumulate(layer.alpha.begin(), layer.alpha.end(), 0.0), 3, 1e-9);
  }
  for (const nlohmann::json& line : changes("more")) {
    EXPECT_EQ(line["old"], std::vector<int>{0});
    EXPECT_EQ(line["new"].size(), 3u);
  }
  TrainConfig other = config_of("other", {"steps=1", "model.attention.global_groups=3"});
  other.mutable_sparsity()->set_dense_steps(100);
  EXPECT_EQ(run(other), TrainingEnd::kFinished);
  const CheckpointReader had(saved("other", "00000001"));
  const CheckpointReader now(more.checkpoint);
  int gates = 0;
  for (const TensorFacts& facts : now.tensors()) {
    if (!is_gate_parameter(facts.name)) continue;
    ++gates;
    const std::vector<double> found = support::to_doubles(whole(now, facts));
    const std::vector<double> expected = support::to_doubles(whole(had, facts));
    ASSERT_EQ(found.size(), expected.size()) << facts.name;
    support::expect_relative(found, expected, 0.02, facts.name);
  }
  EXPECT_EQ(gates, 2 * 4 * 3);  // f32: values and both moments

  const auto go_on = [&](const std::string& name, int groups) {
    TrainConfig config = config_of(name, {concat("model.attention.global_groups=", groups)});
    EXPECT_EQ(run(config), TrainingEnd::kFinished);
    EXPECT_EQ(CheckpointReader(saved(name, "00000012")).facts().id.step, 12);
  };
  go_on("more", 3);
  const ChooseReport all = choose(dense, "two", {.global_groups = 2, .steps = 2});
  const ChooseReport fewer = choose(directory_ / "two", "fewer", {.global_groups = 1, .steps = 2});
  EXPECT_EQ(fewer.global_groups_before, 2);
  go_on("fewer", 1);
}

// A master of bf16's is the value that it is rounded to, as in a new run.
TEST_F(ChooseGroupsTest, GatesThatAreAddedBeginWithTheirMasters) {
  TrainConfig config = config_of("dense", {"steps=1", "runtime.precision=BF16"});
  config.mutable_sparsity()->set_dense_steps(100);
  EXPECT_EQ(run(config), TrainingEnd::kFinished);
  const ChooseReport report =
      choose(directory_ / "dense", "chosen", {.global_groups = 2, .steps = 1});
  const CheckpointReader reader(report.checkpoint);
  int masters = 0;
  for (const TensorFacts& facts : reader.tensors()) {
    if (facts.kind != TensorKind::kMaster || !is_gate_parameter(facts.name)) continue;
    ++masters;
    TensorFacts of_value = facts;
    of_value.kind = TensorKind::kParameter;
    of_value.dtype = DType::kBF16;
    const std::vector<double> master = support::to_doubles(whole(reader, facts));
    const std::vector<double> value = support::to_doubles(whole(reader, of_value));
    ASSERT_EQ(master.size(), value.size());
    const auto half = static_cast<int64_t>(master.size() / 2);
    EXPECT_TRUE(std::equal(master.begin() + half, master.end(), value.begin() + half));
    EXPECT_GT(std::abs(master.back()), 0);
    EXPECT_EQ(facts.shape[0], 2);
  }
  EXPECT_EQ(masters, 2 * 2);
}

TEST(SharedLayers, AreThoseWithMuchThatIsLeftOut) {
  const ChooseReport report{.global_groups = 1,
                            .layers = {{.alpha = {0.1, 0.9, 0.0}, .order = {1, 0, 2}},
                                       {.alpha = {0.0, 0.4, 0.6}, .order = {2, 0, 1}}}};
  const std::vector<SharedLayer> shared = shared_layers(report);
  ASSERT_EQ(shared.size(), 1u);
  EXPECT_EQ(shared[0].layer, 1);
  EXPECT_EQ(shared[0].chosen, 0.6);
  EXPECT_EQ(shared[0].left_out, 0.4);
}

/// "2: message", where a run has nothing to choose or the probe does not fit.
class WrongChoice : public ChooseGroupsTest {
 protected:
  std::string told(const fs::path& checkpoint, const ChooseOptions& options = {.steps = 1}) {
    try {
      choose(checkpoint, "out", options);
    } catch (const Error& error) {
      EXPECT_FALSE(fs::exists(directory_ / "out"));
      return concat(static_cast<int>(error.code()), ": ", error.what());
    }
    return "nothing";
  }
};

TEST_F(WrongChoice, RunsWithNothingToChooseOrWhoseGroupsHaveRolesAreRefused) {
  for (const int groups : {0, 4}) {
    const std::string name = concat("run", groups);
    EXPECT_EQ(run(config_of(name, {"steps=1",
                                   "sparsity=", concat("model.attention.global_groups=", groups)})),
              TrainingEnd::kFinished);
  }
  EXPECT_EQ(told(directory_ / "run0"),
            "2: model.attention.global_groups is 0: the run has no gates that could go on; train "
            "the dense model with 1 or more global groups");
  EXPECT_EQ(told(directory_ / "run4"),
            "2: model.attention.global_groups is 4 and model.kv_heads 4: there is nothing to "
            "choose; give --global-groups 1 to 3");
  EXPECT_EQ(run(config_of("one", {"steps=1", "sparsity=", "model.heads=2", "model.kv_heads=1"})),
            TrainingEnd::kFinished);
  EXPECT_EQ(told(directory_ / "one"), "2: model.kv_heads is 1: there is nothing to choose");
  EXPECT_EQ(told(directory_ / "run4", {.global_groups = 5, .steps = 1}),
            "2: --global-groups is 5 and model.kv_heads 4: there is nothing to choose; give "
            "--global-groups 1 to 3");
  EXPECT_EQ(run(config_of("sparse")), TrainingEnd::kFinished);
  EXPECT_EQ(told(directory_ / "sparse"),
            concat("2: ", saved("sparse", "00000012").string(),
                   " is of step 12, in the stage \"tuning\", expected the dense stage: its groups "
                   "have their roles already; give a checkpoint of an earlier step"));
  EXPECT_EQ(told(saved("sparse", "00000005")).find("is of step 5, in the stage \"gate warm-up\""),
            told(saved("sparse", "00000005")).find("is of step 5"));
}

TEST_F(WrongChoice, GatesThatHaveLearnedAreSeenWhateverTheConfigurationSays) {
  EXPECT_EQ(run(config_of("sparse")), TrainingEnd::kFinished);
  const CheckpointReader reader(saved("sparse", "00000012"));
  TrainConfig config = stored_config(reader);
  config.mutable_sparsity()->set_dense_steps(1000);
  ReorderedState state(reader, std::vector<GroupOrder>(2, GroupOrder{0, 1, 2, 3}), config);
  CheckpointStore store(directory_ / "claims");
  EXPECT_TRUE(save_in_pieces(store, state).committed);
  const std::string message = told(directory_ / "claims");
  EXPECT_NE(message.find("has trained gates: layers.0.attention.gate.pool holds "),
            std::string::npos)
      << message;
}

TEST_F(WrongChoice, ProbesThatDoNotFitAreNamed) {
  const fs::path dense = dense_run();
  const std::string data = (directory_ / "data").string();
  EXPECT_EQ(told(dense, {.probe = {.length = 24}, .steps = 1}),
            concat("2: the sequences of ", data,
                   " have 24 tokens, and local groups will see a window of 24 "
                   "(model.attention.window): all groups would see the same; give longer samples, "
                   "or a larger --sequence-length"));
  make_task_dataset({.task = {.kind = TaskKind::kMqar, .length = 64, .pairs = 4, .values = 2},
                     .samples = 20,
                     .validation = 4,
                     .output = directory_ / "task"});
  EXPECT_EQ(told(dense, {.probe = {.data = directory_ / "task", .length = 100}, .steps = 1}),
            concat("2: --sequence-length is 100, but the samples of ",
                   (directory_ / "task/train").string(),
                   " have 64 tokens: set it to that or to a multiple"));
  EXPECT_EQ(told(dense, {.probe = {.length = 1 << 20}, .steps = 1}),
            concat("2: ", data,
                   "/train has 0 sequences of 1048576 tokens, and 4 are asked for: "
                   "prepare more data, or give a smaller --sequence-length or --batch"));
  fs::create_directories(directory_ / "wide");
  write_test_dataset(directory_ / "wide", patterned_documents());
  DatasetDescription wide = read_description(directory_ / "wide");
  wide.vocabulary = 300;
  write_description(directory_ / "wide", wide);
  EXPECT_EQ(told(dense, {.probe = {.data = directory_ / "wide"}, .steps = 1}).substr(0, 3), "65:");
  fs::create_directories(directory_ / "there");
  EXPECT_EQ(told(directory_ / "none").substr(0, 3), "66:");
  Stream stream(Device{}, 1);
  support::expect_error(
      [&] { choose_groups(stream, {.checkpoint = dense, .output = directory_ / "there"}); },
      "there exists: give the name of a run directory that does not");
}

}  // namespace
}  // namespace tessera
