#include "runtime/train/global_batch.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/core/copy.h"
#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "runtime/data/task_dataset.h"
#include "tests/model/tiny_model.h"
#include "tests/runtime/dataset_fixture.h"
#include "tests/runtime/patterned_documents.h"

namespace tessera {
namespace {

struct Outcome {
  GlobalBatch::Totals totals;
  std::vector<float> gradients;
  std::vector<float> counts;
};

std::vector<float> values_of(ConstTensorView view) {
  const auto values = view.as<float>();
  return {values.begin(), values.end()};
}

double squares_of(ConstTensorView view) {
  double sum = 0;
  for (const float x : view.as<float>()) sum += static_cast<double>(x) * x;
  return sum;
}

class GlobalBatchTest : public testing::Test {
 protected:
  GlobalBatchTest() {
    write_test_dataset(directory_.path(), patterned_documents());
    dataset_.emplace(directory_.path(), kTrainSplit, 257);
  }

  static TrainConfig config_of(const std::string& scope) {
    return support::tiny_config({"model.vocabulary=257", "batch.sequences=4",
                                 concat("batch.micro_sequences=", scope == "MICRO_BATCH" ? 1 : 0),
                                 "model.moe.balance_scope=" + scope});
  }
  DataLoader loader(const TrainConfig& config) const {
    return {*dataset_,
            {.sequence_length = config.batch().sequence_length(), .max_documents = 8, .seed = 5}};
  }

  /// The outcome on rank 0; all ranks must have the same gradients.
  Outcome on_ranks(const TrainConfig& config, const StepPlan& plan, int ranks) const {
    Outcome outcome;
    const DataLoader data = loader(config);
    run_ranks(ranks, [&](Communicator& world) {
      Stream stream(Device{}, 1);
      ParameterStore store;
      const Transformer model(config.model(), DType::kF32, Recompute::kNothing, store);
      store.allocate(Device{});
      store.initialize(stream, config.seed());
      store.zero_gradients(stream);
      Arena arena(Device{}, int64_t{32} << 20);
      const ProcessMesh mesh(world, {ranks, 1, 1, 1});
      // One that sums nothing: gradients are summed below, whole.
      SelfCommunicator self;
      const ProcessMesh alone(self, {});
      BucketExchange exchange(store.buckets(), alone);
      GlobalBatch batch(config, model, mesh, exchange, stream, arena);
      batch.forward_backward(data, 8, plan);
      std::vector<double> riders{1, static_cast<double>(world.rank())};
      std::array<double, 1> squares{squares_of(store.gradients())};
      world.all_reduce_values(squares);
      const auto totals = batch.reduce(riders);
      EXPECT_EQ(riders, (std::vector<double>{1.0 * ranks, ranks * (ranks - 1) / 2.0}));
      EXPECT_NEAR(totals.squares, squares[0], 1e-9 * squares[0]);
      world.all_reduce(stream, store.gradients(), Reduction::kSum);
      if (world.rank() == 0) {
        outcome = {totals, values_of(store.gradients()), values_of(totals.expert_counts)};
      }
    });
    return outcome;
  }

  TemporaryDirectory directory_;
  std::optional<TokenDataset> dataset_;
};

StepPlan dense_plan() {
  return {.step = 1, .kept_blocks = 7, .window = 112};
}

StepPlan gated_plan() {
  return {.step = 1,
          .stage = Stage::kTransition,
          .gated = true,
          .kept_blocks = 2,
          .window = 24,
          .gate_strength = 0.9,
          .kl = 0.5,
          .entropy = 0.01,
          .z_loss = 1e-3};
}

void expect_near_relative(double a, double b, double tolerance, const char* what) {
  EXPECT_NEAR(a, b, tolerance * std::max(1e-6, std::abs(b))) << what;
}

void expect_same(const Outcome& one, const Outcome& many) {
  const auto& a = one.totals;
  const auto& b = many.totals;
  expect_near_relative(b.loss, a.loss, 1e-6, "loss");
  EXPECT_EQ(b.valid_tokens, a.valid_tokens);
  expect_near_relative(b.gate_kl, a.gate_kl, 1e-5, "gate_kl");
  expect_near_relative(b.gate_entropy, a.gate_entropy, 1e-5, "gate_entropy");
  expect_near_relative(b.gate_z, a.gate_z, 1e-5, "gate_z");
  expect_near_relative(b.balance, a.balance, 1e-5, "balance");
  expect_near_relative(b.router_z, a.router_z, 1e-5, "router_z");
  expect_near_relative(b.sparsity, a.sparsity, 1e-5, "sparsity");
  expect_near_relative(b.gate_openness, a.gate_openness, 1e-5, "gate_openness");
  EXPECT_EQ(many.counts, one.counts);
  ASSERT_EQ(many.gradients.size(), one.gradients.size());
  double largest = 0;
  double difference = 0;
  for (size_t i = 0; i < one.gradients.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(one.gradients[i])));
    difference =
        std::max(difference, std::abs(static_cast<double>(many.gradients[i]) - one.gradients[i]));
  }
  EXPECT_GT(largest, 1e-3);
  EXPECT_LT(difference, 2e-5 * std::max(1.0, largest));
}

TEST_F(GlobalBatchTest, AnyNumberOfRanksGivesTheSameStep) {
  for (const std::string scope : {"SEQUENCE", "MICRO_BATCH", "GLOBAL_BATCH"}) {
    const TrainConfig config = config_of(scope);
    for (const StepPlan& plan : {dense_plan(), gated_plan()}) {
      const Outcome one = on_ranks(config, plan, 1);
      for (const int ranks : {2, 4}) {
        SCOPED_TRACE(concat(scope, plan.gated ? " gated " : " dense ", ranks, " ranks"));
        expect_same(one, on_ranks(config, plan, ranks));
      }
    }
  }
}

// The gate's warm-up has other kernels than the stage before it, and must not be seen in the loss.
TEST_F(GlobalBatchTest, KeepingEverythingIsFullAttention) {
  StepPlan everything = gated_plan();
  everything.kept_blocks = dense_plan().kept_blocks;
  everything.window = dense_plan().window;
  everything.kl = everything.entropy = everything.z_loss = 0;
  for (const double strength : {0.0, 0.5, 1 - 0x1p-10}) {
    everything.gate_strength = strength;
    const TrainConfig config = config_of("SEQUENCE");
    expect_same(on_ranks(config, dense_plan(), 1), on_ranks(config, everything, 1));
  }
}

TEST_F(GlobalBatchTest, LossIsTheSumOverTargetsOfTheModelsForward) {
  const TrainConfig config = config_of("SEQUENCE");
  const Outcome outcome = on_ranks(config, dense_plan(), 2);
  MicroBatch micro;
  loader(config).fill(8, 4, micro);
  support::TinyModel tiny(config);
  const auto view = [](const std::vector<int32_t>& v) {
    return ConstTensorView(v.data(), DType::kI32, {static_cast<int64_t>(v.size())}, Device{});
  };
  Transformer::Run run = tiny.run(sparsity_plan(dense_plan(), 0));
  tiny.model.forward(run, {.tokens = view(micro.tokens),
                           .targets = view(micro.targets),
                           .starts = view(micro.starts),
                           .sequences = 4});
  const auto valid = std::ranges::count_if(micro.targets, [](int32_t t) { return t >= 0; });
  EXPECT_LT(valid, std::ssize(micro.targets));  // some positions have no target
  EXPECT_EQ(outcome.totals.valid_tokens, static_cast<double>(valid));
  expect_near_relative(outcome.totals.loss, tiny.loss(), 1e-6, "loss");
}

TEST_F(GlobalBatchTest, MicroBatchesDoNotChangeTheStep) {
  TrainConfig config = config_of("SEQUENCE");
  const Outcome whole = on_ranks(config, gated_plan(), 1);
  config.mutable_batch()->set_micro_sequences(1);
  expect_same(whole, on_ranks(config, gated_plan(), 1));
  expect_same(whole, on_ranks(config, gated_plan(), 2));
}

/// Loss and accuracy of 2 batches on a mesh of ranks, which are threads.
GlobalBatch::Evaluation evaluation(const TrainConfig& config, const DataLoader& data,
                                   const MeshShape& shape) {
  GlobalBatch::Evaluation found;
  run_ranks(shape.ranks(), [&](Communicator& world) {
    Stream stream(Device{}, 1);
    const ProcessMesh mesh(world, shape);
    ParameterStore store;
    const Transformer model(config.model(), DType::kF32, Recompute::kNothing, store,
                            place_in(mesh));
    store.allocate(Device{}, /*gradients=*/true, places_in(mesh));
    store.initialize(stream, config.seed());
    Arena arena(Device{}, int64_t{32} << 20);
    BucketExchange exchange({}, mesh);
    GlobalBatch batch(config, model, mesh, exchange, stream, arena);
    const GlobalBatch::Evaluation mine = batch.evaluate(data, 2, gated_plan());
    if (world.rank() == 0) found = mine;
  });
  return found;
}

TEST_F(GlobalBatchTest, EvaluateIsTheLossPerTokenWhateverTheRanks) {
  const TrainConfig config = config_of("SEQUENCE");
  const DataLoader data = loader(config);
  const GlobalBatch::Evaluation one = evaluation(config, data, {});
  EXPECT_GT(one.loss, 1);
  for (const MeshShape& shape : {MeshShape{.data = 2}, {.data = 4}, {.sequence = 2, .tensor = 2}}) {
    const GlobalBatch::Evaluation many = evaluation(config, data, shape);
    expect_near_relative(many.loss, one.loss, 1e-6, "loss");
    EXPECT_EQ(many.accuracy, one.accuracy);
  }
}

// Of a task only the answers count. The share of right ones is that of the logits.
TEST_F(GlobalBatchTest, AccuracyIsTheShareOfRightAnswersWhateverTheMesh) {
  TrainConfig config = config_of("SEQUENCE");
  config.mutable_model()->set_smear_tokens(0);  // then a few guesses are right
  const TaskOptions task{.kind = TaskKind::kMqar, .length = 112, .pairs = 10, .values = 2};
  make_task_dataset(
      {.task = task, .samples = 8, .validation = 8, .output = directory_.path() / "task"});
  const TokenDataset dataset(directory_.path() / "task", kValidationSplit, 257);
  const DataLoader data(dataset, {.sequence_length = 112, .max_documents = 8, .shuffle = false});
  const GlobalBatch::Evaluation one = evaluation(config, data, {});

  support::TinyModel tiny(config);
  MicroBatch micro;
  data.fill(0, 8, micro);
  std::vector<float> logits(8 * 112 * 257);
  Transformer::Run run = tiny.run(sparsity_plan(gated_plan(), 0));
  tiny.model.logits(run,
                    {.tokens = host_view(micro.tokens),
                     .targets = host_view(micro.targets),
                     .starts = host_view(micro.starts),
                     .sequences = 8},
                    host_view(logits).reshape({8 * 112, 257}));
  int hits = 0;
  for (size_t t = 0; t < micro.targets.size(); ++t) {
    if (micro.targets[t] < 0) continue;
    const auto row = logits.begin() + static_cast<ptrdiff_t>(t * 257);
    hits += std::max_element(row, row + 257) - row == micro.targets[t] ? 1 : 0;
  }
  EXPECT_GT(hits, 0);
  EXPECT_DOUBLE_EQ(one.accuracy, hits / 80.0);
  for (const MeshShape& shape : {MeshShape{.data = 2, .tensor = 2}, {.sequence = 2}}) {
    EXPECT_EQ(evaluation(config, data, shape).accuracy, one.accuracy);
  }
}

}  // namespace
}  // namespace tessera
