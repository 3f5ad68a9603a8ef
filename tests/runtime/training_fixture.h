#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/compare.h"
#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "runtime/train/run_training.h"
#include "tests/model/tiny_model.h"
#include "tests/runtime/dataset_fixture.h"
#include "tests/runtime/patterned_documents.h"

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
    std::vector<std::string> overrides{"model.vocabulary=257", "steps=12",
                                       "sparsity.transition_steps=4", "checkpoint.every=5",
                                       "checkpoint.keep_last=9"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    TrainConfig config = support::tiny_config(overrides);
    config.mutable_data()->set_path(directory_ / "data");
    config.set_run_dir(directory_ / run);
    return config;
  }
  TrainingEnd run(const TrainConfig& config, const ResumeFrom& from = {}) const {
    const StopSignal stop;
    SelfCommunicator world;
    return run_training(config, from, world, stop);
  }
  /// On `ranks` replicas, which are threads.
  void run_on(int ranks, TrainConfig config, const ResumeFrom& from = {}) const {
    config.mutable_mesh()->set_data(ranks);
    const StopSignal stop;
    run_ranks(ranks, [&](Communicator& world) {
      EXPECT_EQ(run_training(config, from, world, stop), TrainingEnd::kFinished);
    });
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
      for (const char* name : {"ms", "tokens_per_second", "tflops_per_device", "memory_gib",
                               "memory_share", "data_wait", "seconds_left"}) {
        json.erase(name);
      }
      steps.push_back(json.dump());
    }
    return steps;
  }

  TemporaryDirectory directory_;
};

}  // namespace tessera::support
