#include "runtime/train/memory_plan.h"

#include <gtest/gtest.h>

#include "parallel/mesh.pb.h"
#include "parallel/thread_communicator.h"
#include "runtime/train/adamw_optimizer.h"
#include "runtime/train/global_batch.h"
#include "runtime/train/run_saver.h"
#include "runtime/train/schedule.h"
#include "tests/model/tiny_model.h"
#include "tests/runtime/dataset_fixture.h"
#include "tests/runtime/patterned_documents.h"

namespace tessera {
namespace {

/// Runs every step of `config` on all ranks, in arenas of exactly the planned sizes, of which every
/// byte is used.
void expect_exact(const TrainConfig& config) {
  const TemporaryDirectory directory;
  write_test_dataset(directory.path(), patterned_documents());
  const TokenDataset dataset(directory.path(), kTrainSplit, 257);
  const DataLoader data(dataset, {.sequence_length = config.batch().sequence_length(), .seed = 1});
  const MeshConfig& axes = config.mesh();
  const MeshShape shape{axes.data(), axes.expert(), axes.sequence(), axes.tensor()};
  run_ranks(shape.ranks(), [&](Communicator& world) {
    const ProcessMesh mesh(world, shape);
    Stream stream(Device{}, 1);
    ParameterStore store;
    const Transformer model(config.model(), DType::kF32, Recompute::kNothing, store,
                            place_in(mesh));
    store.allocate(Device{}, /*gradients=*/true, places_in(mesh));
    store.initialize(stream, 1);
    BucketExchange exchange(store.buckets(), mesh);
    const MemoryPlan plan = plan_memory(config, world.rank());
    Arena arena(Device{}, plan.activations);
    GlobalBatch batch(config, model, mesh, exchange, stream, arena);
    for (int64_t step = 1; step <= config.steps(); ++step) {
      batch.forward_backward(data, step * 2, plan_step(config, step));
      exchange.finish_sums(stream);
    }
    EXPECT_EQ(arena.high_water(), plan.activations) << to_string(shape) << ", " << world.rank();
    EXPECT_EQ(plan.rank, world.rank());
    EXPECT_EQ(plan.parameters, store.value_bytes());
    EXPECT_EQ(plan.gradients, store.gradient_bytes());
    const AdamwOptimizer optimizer(config.optimizer(), store, Device{});
    EXPECT_EQ(plan.optimizer, optimizer.bytes());
    const std::vector<NamedTensor> buffers = named_parameters(store).buffers;
    EXPECT_EQ(plan.snapshot,
              Snapshot::bytes_for(saved_groups(
                  optimizer, world.rank() == 0 ? buffers : std::vector<NamedTensor>{})));
  });
}

TEST(MemoryPlan, IsExactForEveryStepOfARun) {
  expect_exact(support::tiny_config({"model.vocabulary=257"}));
}

TEST(MemoryPlan, IsExactOnAMesh) {
  // 9 local heads in groups of 3, and 257 entries of the vocabulary: no axis divides them.
  for (const MeshShape& shape :
       {MeshShape{1, 2, 2, 2}, {1, 1, 4, 2}, {2, 2, 1, 1}, {1, 1, 1, 4}, {1, 1, 2, 4}}) {
    TrainConfig config =
        support::tiny_config({"model.vocabulary=257", "model.heads=12", "model.kv_heads=4",
                              "batch.sequences=4", "batch.micro_sequences=1", "steps=8"});
    config.mutable_mesh()->set_data(shape.data);
    config.mutable_mesh()->set_expert(shape.expert);
    config.mutable_mesh()->set_sequence(shape.sequence);
    config.mutable_mesh()->set_tensor(shape.tensor);
    expect_exact(config);
  }
}

TEST(MemoryPlan, IsExactWhereTensorRanksDiffer) {
  // 9 local heads in groups of 3: on 4 ranks rank 0 has heads 0 to 2 of one group, rank 1 has 3
  // and 4, and rank 2 has heads 5 and 6 of two groups.
  TrainConfig config = support::tiny_config(
      {"model.vocabulary=257", "model.heads=12", "model.kv_heads=4", "model.intermediate=48",
       "model.moe.shared_experts=2", "batch.sequence_length=120"});
  for (const int tensor : {2, 4, 6}) {
    config.mutable_mesh()->set_tensor(tensor);
    expect_exact(config);
  }
}

TEST(MemoryPlan, CountsDenseRefreshWithoutGateWarmUp) {
  expect_exact(support::tiny_config({"model.vocabulary=257", "steps=6", "sparsity.dense_steps=1",
                                     "sparsity.gate_warmup_steps=0", "sparsity.transition_steps=3",
                                     "sparsity.dense_refresh=3"}));
}

TEST(MemoryPlan, CountsEveryBatchOfTheCurriculum) {
  // Shorter sequences at first, and so more segments. Without a guard: it could hold the transition
  // at more than this run will need.
  for (const char* keep : {"TOKENS", "SEQUENCES"}) {
    for (const char* measures : {"monitor.gate_every=100", "monitor.gate_every=1"}) {
      expect_exact(support::tiny_config(
          {"model.vocabulary=257", "steps=8", "sparsity.guard_tolerance=0", measures,
           "curriculum.sequence_length=[{value: 56}, {step: 3 value: 28}, {step: 7 value: 112}]",
           concat("curriculum.keep=", keep), "sparsity.dense_refresh=4"}));
    }
  }
}

TEST(MemoryPlan, CountsParametersByHand) {
  const TrainConfig config = support::tiny_config();
  const MemoryPlan plan = plan_memory(config);
  support::TinyModel tiny(config);
  EXPECT_EQ(plan.parameter_count, tiny.store.elements());
  EXPECT_EQ(plan.parameters, tiny.store.value_bytes());
  EXPECT_EQ(plan.gradients, tiny.store.gradient_bytes());
  EXPECT_EQ(plan.total(), plan.parameters + plan.gradients + plan.optimizer + plan.activations);
  EXPECT_EQ(plan.communication, 0);  // nobody to talk to
  EXPECT_EQ(plan.model_parameters, plan.parameter_count);
  // Tokens and targets of 2 x 112, and 64 segments of each sequence.
  EXPECT_EQ(plan.batch, 4 * (2 * 224 + 2 * 64 + 1));
  EXPECT_GE(plan.optimizer, 8 * plan.parameter_count);
}

TEST(MemoryPlan, OptimizerStateIsSharedOut) {
  TrainConfig config = support::tiny_config({"batch.sequences=8", "batch.micro_sequences=1"});
  const MemoryPlan one = plan_memory(config);
  config.mutable_mesh()->set_data(4);
  const MemoryPlan four = plan_memory(config);
  EXPECT_EQ(four.model_parameters, one.model_parameters);
  // All gradients are one bucket of less than a chunk: the parts of 4 ranks for this one.
  EXPECT_GE(four.communication, four.gradients / 2);
  EXPECT_EQ(four.activations, one.activations);
  EXPECT_NEAR(static_cast<double>(four.optimizer), static_cast<double>(one.optimizer) / 4, 4096);
}

}  // namespace
}  // namespace tessera
