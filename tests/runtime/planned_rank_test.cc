#include "runtime/train/planned_rank.h"

#include <gtest/gtest.h>

#include "parallel/mesh.pb.h"
#include "parallel/thread_communicator.h"
#include "runtime/train/global_batch.h"
#include "runtime/train/schedule.h"
#include "runtime/train/trainer.h"
#include "tests/model/tiny_model.h"
#include "tests/runtime/dataset_fixture.h"
#include "tests/runtime/patterned_documents.h"

namespace tessera {
namespace {

TrainConfig config_on(const MeshShape& shape, std::vector<std::string> more = {}) {
  // Without documents the real rows are those of a plan.
  more.insert(more.end(), {"model.vocabulary=257", "batch.sequences=8", "batch.micro_sequences=2",
                           "data.document_boundaries=false"});
  TrainConfig config = support::tiny_config(more);
  config.mutable_mesh()->set_data(shape.data);
  config.mutable_mesh()->set_expert(shape.expert);
  config.mutable_mesh()->set_sequence(shape.sequence);
  config.mutable_mesh()->set_tensor(shape.tensor);
  return config;
}

/// What one rank exchanges in step `step`, as the trainer does it.
std::vector<GroupTraffic> traffic_of_step(const TrainConfig& config, Communicator& world,
                                          const DataLoader& data, int64_t step) {
  const MeshConfig& axes = config.mesh();
  const ProcessMesh mesh(world, {axes.data(), axes.expert(), axes.sequence(), axes.tensor()});
  Stream stream(Device{}, 1);
  ParameterStore store;
  const Transformer model(config.model(), DType::kF32, Recompute::kNothing, store, place_in(mesh));
  store.allocate(Device{}, /*gradients=*/true, places_in(mesh));
  store.initialize(stream, 1);
  BucketExchange exchange(store.buckets(), mesh);
  Arena arena(Device{}, plan_memory(config, world.rank()).activations);
  GlobalBatch batch(config, model, mesh, exchange, stream, arena);
  const std::vector<GroupTraffic> before = traffic_of(mesh);  // the mesh was split
  batch.forward_backward(data, 0, plan_step(config, step));
  exchange.finish_sums(stream);
  std::vector<double> riders(kStepRiders);
  (void)batch.reduce(riders);
  for (size_t bucket = 0; bucket < exchange.buckets().size(); ++bucket) {
    exchange.start_gather(stream, bucket);
  }
  exchange.finish_gathers();
  std::vector<GroupTraffic> traffic = traffic_of(mesh);
  for (size_t i = 0; i < traffic.size(); ++i) {
    traffic[i].traffic.calls -= before[i].traffic.calls;
    EXPECT_EQ(before[i].traffic.sent, 0);
  }
  return traffic;
}

/// The first and the last stage, on every rank.
void expect_planned_traffic(const TrainConfig& config) {
  const TemporaryDirectory directory;
  write_test_dataset(directory.path(), patterned_documents());
  const TokenDataset dataset(directory.path(), kTrainSplit, 257);
  const DataLoader data(dataset, {.sequence_length = config.batch().sequence_length(),
                                  .document_boundaries = false,
                                  .seed = 1});
  const MeshConfig& axes = config.mesh();
  const int ranks = axes.data() * axes.expert() * axes.sequence() * axes.tensor();
  for (const size_t stage : {0, 3}) {
    run_ranks(ranks, [&](Communicator& world) {
      const StepTraffic step = plan_rank(config, world.rank()).steps.at(stage);
      const std::vector<GroupTraffic> real = traffic_of_step(config, world, data, step.step);
      ASSERT_EQ(real.size(), step.groups.size());
      for (size_t i = 0; i < real.size(); ++i) {
        const Traffic& planned = step.groups[i].traffic;
        EXPECT_EQ(real[i].group, step.groups[i].group);
        EXPECT_EQ(real[i].block, step.groups[i].block);
        // The rows for experts depend on the router; the rest is known.
        if (real[i].group == "expert") continue;
        EXPECT_EQ(real[i].traffic, planned)
            << real[i].group << " of rank " << world.rank() << " " << name_of(step.stage) << ": "
            << real[i].traffic.calls << " " << real[i].traffic.sent << " "
            << real[i].traffic.received << ", planned " << planned.calls << " " << planned.sent
            << " " << planned.received;
      }
    });
  }
}

TEST(PlannedRank, CountsWhatEveryRankSends) {
  expect_planned_traffic(config_on({2, 1, 1, 1}));
  expect_planned_traffic(config_on({1, 1, 2, 2}));
  expect_planned_traffic(config_on({2, 1, 2, 2}));
  expect_planned_traffic(config_on({2, 2, 1, 2}, {"batch.sequences=8"}));
  expect_planned_traffic(config_on({1, 1, 4, 1}));
}

TEST(PlannedRank, NamesTheStages) {
  const RankPlan plan = plan_rank(config_on({1, 1, 2, 1}), 1);
  std::vector<Stage> stages;
  for (const StepTraffic& step : plan.steps) stages.push_back(step.stage);
  EXPECT_EQ(stages, (std::vector<Stage>{Stage::kDense, Stage::kGateWarmup, Stage::kTransition,
                                        Stage::kTuning}));
  EXPECT_EQ(plan.memory.rank, 1);
}

TEST(PlannedRank, GradientsByHand) {
  // Nothing but replicas: half of the gradients go to the other, half of the values to each.
  const RankPlan plan = plan_rank(config_on({2, 1, 1, 1}), 0);
  const StepTraffic& step = plan.steps.front();
  const int64_t counts = 4 * 4;  // of 4 experts of one layer, to the other rank
  // The short messages: sizes and the plan's digest; totals, stop and votes.
  const int64_t numbers = 8 * (2 + 7 + 14 + 8);
  EXPECT_EQ(step.sent(), plan.memory.gradients / 2 + plan.memory.gradients / 2 + counts + numbers);
  EXPECT_EQ(step.received(), step.sent());
}

TEST(PlannedRank, LessIsSentForShorterWindows) {
  const RankPlan plan = plan_rank(config_on({1, 1, 4, 2}), 2);
  const auto sent = [](const StepTraffic& step) {
    for (const GroupTraffic& group : step.groups) {
      if (group.group == "sequence") return group.traffic.sent;
    }
    return int64_t{0};
  };
  EXPECT_LT(sent(plan.steps.back()), sent(plan.steps.front()));
  EXPECT_GT(sent(plan.steps.back()), 0);
}

}  // namespace
}  // namespace tessera
