// Training on a GPU, real or interpreted: the numbers of the CPU within the rounding of sums, the
// same bits in every repetition and as graphs, and checkpoints that either device goes on from.

#include <gtest/gtest.h>

#include "tests/runtime/training_fixture.h"

namespace tessera {
namespace {

using support::expect_relative;

class DeviceTrainingTest : public support::TrainingFixture {
 protected:
  /// Four steps: dense, dense with the gate's losses, transition, tuning.
  TrainConfig config_of(const std::string& run, const std::string& device,
                        std::vector<std::string> more = {}) const {
    // Adam divides by the root of v: where a gradient is almost 0, rounding decides its direction.
    more.insert(more.end(), {"runtime.device=" + device, "steps=4", "batch.sequence_length=64",
                             "batch.micro_sequences=1", "sparsity.dense_steps=2",
                             "sparsity.gate_warmup_steps=1", "sparsity.transition_steps=1",
                             "checkpoint.every=2", "optimizer.epsilon=1e-4"});
    return config(run, more);
  }
  void expect_like_the_cpu(const std::string& run, double tolerance) const {
    expect_relative(metric(run, "loss"), metric("cpu", "loss"), tolerance, run + " loss");
    expect_relative(metric(run, "gradient_norm"), metric("cpu", "gradient_norm"), tolerance,
                    run + " gradient norm");
  }
};

TEST_F(DeviceTrainingTest, GivesTheNumbersOfTheCpuAndTheSameBitsAgain) {
  run(config_of("cpu", "CPU"));
  run(config_of("gpu", "GPU"));
  expect_like_the_cpu("gpu", 2e-5);
  expect_close_state(saved("gpu", "00000004"), saved("cpu", "00000004"), 2e-4);
  run(config_of("again", "GPU"));
  EXPECT_EQ(metrics("again"), metrics("gpu"));
  expect_same_state(saved("again", "00000004"), saved("gpu", "00000004"));
}

TEST_F(DeviceTrainingTest, IsCloseToTheCpuInBFloat16) {
  const std::vector<std::string> half{"runtime.precision=BF16"};
  run(config_of("cpu", "CPU", half));
  run(config_of("gpu", "GPU", half));
  expect_like_the_cpu("gpu", 0.02);
}

TEST_F(DeviceTrainingTest, GoesOnWhereTheOtherDeviceWas) {
  run(config_of("cpu", "CPU"));
  run(config_of("gpu", "GPU"));
  run(config_of("from_gpu", "CPU"), from("gpu", "00000002"));
  run(config_of("from_cpu", "GPU"), from("cpu", "00000002"));
  // The same device has the same bits: a checkpoint has lost nothing on its way.
  run(config_of("resumed", "GPU"), from("gpu", "00000002"));
  expect_same_state(saved("resumed", "00000004"), saved("gpu", "00000004"));
  const auto expect_end = [&](const std::string& name) {
    const std::vector<double> all = metric("cpu", "loss");
    expect_relative(metric(name, "loss"), {all.begin() + 2, all.end()}, 2e-5, name + " loss");
    expect_close_state(saved(name, "00000004"), saved("cpu", "00000004"), 2e-4);
  };
  expect_end("from_gpu");
  expect_end("from_cpu");
}

/// A plan that comes a second time is a graph.
class GraphTrainingTest : public DeviceTrainingTest {
 protected:
  TrainConfig graph_config(const std::string& run, bool graphs,
                           std::vector<std::string> more) const {
    more.insert(more.end(), {"runtime.device=GPU", "batch.micro_sequences=1",
                             concat("runtime.graphs=", graphs ? "true" : "false")});
    return config(run, more);
  }
  /// How many calls its graph takes, by its log; 0 without a graph.
  int64_t calls(const std::string& run) const {
    std::ifstream in(directory_ / run / "log.txt");
    const std::string log{std::istreambuf_iterator<char>(in), {}};
    const std::string before = " kernels and copies in ";
    const size_t found = log.find(before);
    return found == std::string::npos ? 0 : std::stoll(log.substr(found + before.size()));
  }
};

/// Two steps of full attention with the gate's losses and three sparse ones, on samples of other
/// documents each: a graph is made in step 2 and in step 4, and comes again in step 5.
TEST_F(GraphTrainingTest, HasTheBitsOfKernelByKernel) {
  const std::vector<std::string> steps{"steps=5",
                                       "batch.sequences=1",
                                       "batch.sequence_length=96",
                                       "sparsity.dense_steps=2",
                                       "sparsity.gate_warmup_steps=2",
                                       "sparsity.transition_steps=0",
                                       "checkpoint.every=3",
                                       "runtime.validate_every=4",
                                       "runtime.validate_batches=1",
                                       "seed=3"};
  run(graph_config("plain", false, steps));
  run(graph_config("graph", true, steps));
  EXPECT_EQ(calls("plain"), 0);
  EXPECT_EQ(calls("graph"), 1);
  EXPECT_EQ(metrics("graph"), metrics("plain"));
  for (size_t step : {3u, 4u}) EXPECT_GT(metric("graph", "gate_kl")[step], 0) << step;
  expect_same_state(saved("graph", "00000005"), saved("plain", "00000005"));
  // Where it goes on, the plan comes for the first time again.
  run(graph_config("resumed", true, steps), from("graph", "00000003"));
  EXPECT_EQ(calls("resumed"), 1);
  expect_same_state(saved("resumed", "00000005"), saved("plain", "00000005"));
}

TEST_F(GraphTrainingTest, RanksExchangeGradientsBetweenItsParts) {
  const std::vector<std::string> steps{"steps=3", "batch.sequences=2", "batch.sequence_length=32"};
  run_on(2, graph_config("plain", false, steps));
  run_on(2, graph_config("graph", true, steps));
  EXPECT_EQ(calls("plain"), 0);
  EXPECT_GT(calls("graph"), 3);
  EXPECT_EQ(metrics("graph"), metrics("plain"));
  expect_same_state(saved("graph", "00000003"), saved("plain", "00000003"));
}

TEST_F(DeviceTrainingTest, SaysBeforeItBeginsThatTheMemoryIsTooSmall) {
  // 400 GiB: more than any GPU has.
  const TrainConfig config = config_of(
      "large", "GPU", {"model.layers=4", "model.hidden=65536", "model.intermediate=131072"});
  support::expect_error([&] { run(config); }, " GiB of the memory of GPU 0, which has ");
  EXPECT_FALSE(std::filesystem::exists(config.run_dir()));
}

}  // namespace
}  // namespace tessera
