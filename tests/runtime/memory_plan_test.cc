#include "runtime/train/memory_plan.h"

#include <gtest/gtest.h>

#include "parallel/self_communicator.h"
#include "runtime/train/global_batch.h"
#include "runtime/train/schedule.h"
#include "tests/model/tiny_model.h"
#include "tests/runtime/dataset_fixture.h"
#include "tests/runtime/patterned_documents.h"

namespace tessera {
namespace {

/// Every step of `config`, in an arena of exactly the planned size.
int64_t high_water(const TrainConfig& config) {
  const TemporaryDirectory directory;
  write_test_dataset(directory.path(), patterned_documents());
  const TokenDataset dataset(directory.path(), kTrainSplit, 257);
  const DataLoader data(dataset, {.sequence_length = config.batch().sequence_length(), .seed = 1});
  Stream stream(Device{}, 1);
  ParameterStore store;
  const Transformer model(config.model(), DType::kF32, Recompute::kNothing, store);
  store.allocate(Device{});
  store.initialize(stream, 1);
  SelfCommunicator world;
  Arena arena(Device{}, plan_memory(config).activations);
  GlobalBatch batch(config, model, world, stream, arena);
  for (int64_t step = 1; step <= config.steps(); ++step) {
    (void)batch.forward_backward(data, step * 2, plan_step(config, step), false);
  }
  return arena.high_water();
}

TEST(MemoryPlan, IsExactForEveryStepOfARun) {
  const TrainConfig config = support::tiny_config({"model.vocabulary=257"});
  EXPECT_EQ(high_water(config), plan_memory(config).activations);
}

TEST(MemoryPlan, CountsDenseRefreshWithoutGateWarmUp) {
  const TrainConfig config = support::tiny_config(
      {"model.vocabulary=257", "steps=6", "sparsity.dense_steps=1", "sparsity.gate_warmup_steps=0",
       "sparsity.transition_steps=3", "sparsity.dense_refresh=3"});
  EXPECT_EQ(high_water(config), plan_memory(config).activations);
}

TEST(MemoryPlan, CountsParametersByHand) {
  const TrainConfig config = support::tiny_config();
  const MemoryPlan plan = plan_memory(config);
  support::TinyModel tiny(config);
  EXPECT_EQ(plan.parameter_count, tiny.store.elements());
  EXPECT_EQ(plan.parameters, tiny.store.value_bytes());
  EXPECT_EQ(plan.gradients, tiny.store.gradient_bytes());
  EXPECT_EQ(plan.total(), plan.parameters + plan.gradients + plan.optimizer + plan.activations);
  EXPECT_GE(plan.optimizer, 8 * plan.parameter_count);
}

TEST(MemoryPlan, OptimizerStateIsSharedOut) {
  TrainConfig config = support::tiny_config({"batch.sequences=8", "batch.micro_sequences=1"});
  const MemoryPlan one = plan_memory(config);
  config.mutable_mesh()->set_data(4);
  const MemoryPlan four = plan_memory(config);
  EXPECT_EQ(four.activations, one.activations);
  EXPECT_NEAR(static_cast<double>(four.optimizer), static_cast<double>(one.optimizer) / 4, 4096);
}

}  // namespace
}  // namespace tessera
