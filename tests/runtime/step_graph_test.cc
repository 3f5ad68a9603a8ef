#include "runtime/train/step_graph.h"

#include <gtest/gtest.h>

#include "kernels/core/buffer.h"
#include "kernels/core/copy.h"
#include "parallel/self_communicator.h"
#include "tests/model/tiny_model.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

/// b = a by the stream, then what the host has to do, then c = b by the stream.
class StepGraphTest : public testing::Test {
 protected:
  StepGraph::Key key(int64_t kept) const { return {.gated = true, .kept = kept}; }
  void work(StepGraph& graph) {
    ++calls_;
    copy(stream_, a_, b_);
    graph.between([this] { between(); });
    copy(stream_, b_, c_);
  }
  void between() {
    ++betweens_;
    stream_.synchronize();
    b_.as<int32_t>()[0] += 1000;
  }
  /// Runs it with another value, and expects that the value came through.
  void run(StepGraph& graph, int64_t kept) {
    a_.as<int32_t>()[0] = ++value_;
    const int64_t before = betweens_;
    graph.run(key(kept), [&] { work(graph); });
    stream_.synchronize();
    EXPECT_EQ(c_.as<int32_t>()[0], value_ + 1000);
    EXPECT_EQ(betweens_, before + 1);
  }

  SelfCommunicator self_;
  Stream stream_{support::device()};
  support::Tensor memory_a_{DType::kI32, {1}};
  support::Tensor memory_b_{DType::kI32, {1}};
  support::Tensor memory_c_{DType::kI32, {1}};
  TensorView a_ = memory_a_.view();
  TensorView b_ = memory_b_.view();
  TensorView c_ = memory_c_.view();
  int64_t calls_ = 0;
  int64_t betweens_ = 0;
  int32_t value_ = 0;
};

TEST_F(StepGraphTest, WorkIsAGraphFromItsSecondStepOn) {
  StepGraph graph(stream_, self_.log(), "");
  const auto step = [&](std::vector<int64_t> micro_batches) {
    graph.begin_step();
    for (const int64_t kept : micro_batches) run(graph, kept);
  };
  step({1, 1});
  EXPECT_EQ(graph.made(), 0);
  step({1, 1});
  EXPECT_EQ(graph.made(), 1);
  EXPECT_EQ(graph.runs(), 2);
  EXPECT_EQ(calls_, 3);
  // Plans that are there once, as in the transition, stay without.
  step({2});
  step({3});
  step({1});
  EXPECT_EQ(graph.made(), 1);
  EXPECT_EQ(graph.runs(), 3);
  // A second plan finds room, a third one takes that of the one that rested longest.
  step({3});
  EXPECT_EQ(graph.made(), 2);
  step({1});
  step({4});
  step({4});
  EXPECT_EQ(graph.made(), 3);
  step({1});
  EXPECT_EQ(graph.runs(), 7);
  step({3});
  EXPECT_EQ(graph.runs(), 7);
  EXPECT_EQ(graph.made(), 3);
}

TEST_F(StepGraphTest, AnErrorLeavesTheStepsAsTheyAre) {
  StepGraph graph(stream_, self_.log(), "");
  int64_t done = 0;
  const auto step = [&] {
    graph.begin_step();
    graph.run(key(1), [&] {
      copy(stream_, a_, b_);
      stream_.synchronize();  // which a graph cannot hold
      ++done;
    });
  };
  testing::internal::CaptureStderr();
  step();
  step();
  step();
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(done, 3);
  EXPECT_EQ(graph.made(), 0);
  const size_t line = said.find("steps start their kernels one by one from here on");
  EXPECT_NE(line, std::string::npos) << said;
  EXPECT_EQ(said.find("one by one", line + 60), std::string::npos) << said;
  EXPECT_NE(said.find("cudaStreamSynchronize"), std::string::npos) << said;
  run(graph, 1);
  EXPECT_EQ(graph.runs(), 0);
}

TEST_F(StepGraphTest, AnObstacleMeansNone) {
  StepGraph graph(stream_, self_.log(), "nobody wants any");
  for (int64_t step = 0; step < 3; ++step) {
    graph.begin_step();
    run(graph, 1);
  }
  EXPECT_EQ(graph.made(), 0);
  EXPECT_EQ(calls_, 3);
}

std::string obstacle(const MeshShape& shape, const std::vector<std::string>& overrides = {}) {
  SelfCommunicator world(0, shape.ranks());
  return graph_obstacle(support::tiny_config(overrides), ProcessMesh(world, shape));
}

TEST(GraphObstacle, IsWhatTheHostHasToKnowWithinAMicroBatch) {
  const auto expect = [](const std::string& found, const std::string& part) {
    EXPECT_NE(found.find(part), std::string::npos) << found << "; expected " << part;
  };
  EXPECT_EQ(obstacle({}), "");
  EXPECT_EQ(obstacle({.data = 2}), "");
  EXPECT_EQ(obstacle({}, {"model.moe.balance_scope=GLOBAL_BATCH"}), "");
  expect(obstacle({}, {"runtime.graphs=false"}), "runtime.graphs is false");
  expect(obstacle({}, {"model.attention.selection=RANDOM"}), "selection is RANDOM");
  expect(obstacle({.sequence = 2}), "mesh.sequence x mesh.tensor");
  expect(obstacle({.tensor = 2}), "mesh.sequence x mesh.tensor");
  expect(obstacle({.expert = 2}), "mesh.expert is above 1");
  EXPECT_EQ(obstacle({.expert = 2}, {"model.moe="}), "");
  expect(obstacle({}, {"model.moe.capacity_factor=1.5"}), "capacity_factor is above 0");
  expect(obstacle({.data = 2}, {"model.moe.balance_scope=GLOBAL_BATCH"}), "balance_scope is");
}

}  // namespace
}  // namespace tessera
