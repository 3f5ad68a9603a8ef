#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/compare.h"
#include "parallel/mesh.pb.h"
#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "runtime/train/model_options.h"
#include "runtime/train/run_training.h"
#include "runtime/train/train_state.h"
#include "tests/checkpoint/save_together.h"
#include "tests/model/tiny_model.h"
#include "tests/runtime/dataset_fixture.h"
#include "tests/runtime/patterned_documents.h"
#include "tests/support/compare.h"

namespace tessera::support {

/// Runs of tiny models on a tiny data set, in a directory that vanishes.
class TrainingFixture : public testing::Test {
 protected:
  TrainingFixture() {
    std::filesystem::create_directories(directory_ / "data");
    write_test_dataset(directory_ / "data", patterned_documents());
  }

  /// 12 steps over all stages: dense 1-2, gate warm-up 3-4, transition 5-8, tuning 9-12.
  TrainConfig config(const std::string& run, std::vector<std::string> more = {}) const {
    std::vector<std::string> overrides{
        "model.vocabulary=257",        "steps=12",
        "sparsity.transition_steps=4", "checkpoint.every=5",
        "checkpoint.keep_last=9",      "checkpoint.background=false"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    TrainConfig config = support::tiny_config(overrides);
    config.mutable_data()->set_path(directory_ / "data");
    config.set_run_dir(directory_ / run);
    return config;
  }
  TrainingEnd run(const TrainConfig& config, const ResumeFrom& from = {},
                  const StageObserver& on_stage = {}) const {
    const StopSignal stop;
    SelfCommunicator world;
    return run_training(config, from, world, stop, {.on_stage = on_stage});
  }
  /// On a mesh of ranks, which are threads.
  void run_on(const MeshShape& shape, TrainConfig config, const ResumeFrom& from = {}) const {
    MeshConfig& mesh = *config.mutable_mesh();
    mesh.set_data(shape.data);
    mesh.set_expert(shape.expert);
    mesh.set_sequence(shape.sequence);
    mesh.set_tensor(shape.tensor);
    const StopSignal stop;
    run_ranks(shape.ranks(), [&](Communicator& world) {
      EXPECT_EQ(run_training(config, from, world, stop), TrainingEnd::kFinished);
    });
  }
  /// On `ranks` replicas.
  void run_on(int ranks, const TrainConfig& config, const ResumeFrom& from = {}) const {
    run_on(MeshShape{.data = ranks}, config, from);
  }
  ResumeFrom from(const std::string& run, const std::string& step) const {
    return {.kind = ResumeFrom::Kind::kDirectory, .directory = saved(run, step)};
  }
  std::filesystem::path saved(const std::string& run, const std::string& step) const {
    return directory_ / run / "checkpoints" / ("step-" + step);
  }
  void expect_same_state(const std::filesystem::path& left,
                         const std::filesystem::path& right) const {
    const CheckpointReader a(left);
    const CheckpointReader b(right);
    EXPECT_GT(a.tensors().size(), 50u);
    for (const TensorDifference& difference : compare_checkpoints(a, b)) {
      ADD_FAILURE() << name_of(difference.kind) << " " << difference.name << " "
                    << difference.reason << " " << difference.elements;
    }
    for (const char* blob : {"progress", "spike_guard"}) {
      EXPECT_EQ(a.read_blob(blob), b.read_blob(blob)) << blob;
    }
  }
  /// What each step computed; of times, memory and rates nothing.
  std::vector<std::string> metrics(const std::string& run) const {
    std::ifstream in(directory_ / run / "metrics.jsonl");
    std::vector<std::string> steps;
    for (std::string line; std::getline(in, line);) {
      auto json = nlohmann::json::parse(line);
      for (const char* name : {"time", "ms", "tokens_per_second", "tflops_per_device", "memory_gib",
                               "memory_share", "data_wait", "seconds_left"}) {
        json.erase(name);
      }
      steps.push_back(json.dump());
    }
    return steps;
  }

  std::vector<double> metric(const std::string& run, const char* name) const {
    std::vector<double> values;
    for (const std::string& line : metrics(run)) {
      values.push_back(nlohmann::json::parse(line)[name].get<double>());
    }
    return values;
  }
  /// |a - b| <= tolerance * |b| for every parameter of two checkpoints, as vectors.
  static void expect_close_state(const std::filesystem::path& left,
                                 const std::filesystem::path& right, double tolerance) {
    const CheckpointReader a(left);
    const CheckpointReader b(right);
    ASSERT_EQ(a.tensors().size(), b.tensors().size());
    for (const TensorFacts& facts : a.tensors()) {
      if (facts.kind != TensorKind::kParameter) continue;
      const Tensor x = whole(a, facts);
      const Tensor y = whole(b, facts);
      expect_close(x.view(), to_doubles(y.view()), tolerance * tolerance, facts.name);
    }
  }
  static Tensor whole(const CheckpointReader& reader, const TensorFacts& facts) {
    const Buffer memory(Device{}, facts.bytes);
    const NamedTensor into(facts.name, Shard::replicated(facts.shape),
                           memory.view(facts.dtype, facts.shape));
    reader.read(facts.kind, {&into, 1});
    return copy_of(into.data);
  }

  /// Loads `from` on another mesh and saves it again in run directory `to`, which changes nothing
  /// but what the checkpoint says of the next step.
  static void copy_on(const MeshShape& shape, const TrainConfig& config,
                      const std::filesystem::path& from, const std::filesystem::path& to,
                      std::optional<uint64_t> next_step_digest = {}) {
    std::optional<CheckpointStore> checkpoints(to);
    run_ranks(shape.ranks(), [&](Communicator& world) {
      const ProcessMesh mesh(world, shape);
      ParameterStore store;
      const Transformer model(config.model(), value_dtype(config), recompute_policy(config), store,
                              place_in(mesh));
      store.allocate(Device{}, /*gradients=*/true, places_in(mesh));
      AdamwOptimizer optimizer(config.optimizer(), store, Device{});
      TrainState state{.store = store,
                       .optimizer = optimizer,
                       .guard = {},
                       .progress = {},
                       .hooks = {},
                       .tokenizer_model = "none"};
      Stream stream(Device{}, 1);
      load_state(CheckpointReader(from), mesh, stream, config, state);
      const bool first = world.rank() == 0;
      StateContents mine = describe_state(mesh, state, config);
      mine.contents.next_step_digest = next_step_digest;
      const SaveReport report =
          save_together(world, first ? &*checkpoints : nullptr, mine.contents);
      EXPECT_TRUE(report.committed) << report.failure;
    });
  }

  TemporaryDirectory directory_;
};

inline void expect_relative(const std::vector<double>& found, const std::vector<double>& expected,
                            double tolerance, const std::string& what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i], expected[i], tolerance * std::abs(expected[i])) << what << " " << i;
  }
}

}  // namespace tessera::support
