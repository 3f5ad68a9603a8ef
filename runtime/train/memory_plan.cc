#include "runtime/train/memory_plan.h"

#include <algorithm>
#include <iomanip>
#include <sstream>
#include <vector>

#include "model/step_sums.h"
#include "parallel/self_communicator.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/adamw_optimizer.h"
#include "runtime/train/global_batch.h"
#include "runtime/train/model_options.h"
#include "runtime/train/schedule.h"

namespace tessera {

namespace {

// The steps where the shapes of a step may change: the first of each stage. Kept blocks only fall
// after the first step of the transition, but for its dense refreshes.
std::vector<int64_t> stage_begins(const TrainConfig& config) {
  const SparsityConfig& sparsity = config.sparsity();
  const int64_t dense = sparsity.dense_steps();
  const int64_t tuning = dense + sparsity.transition_steps() + 1;
  const int64_t every = std::max<int64_t>(1, sparsity.dense_refresh());
  const int64_t refresh = std::min((dense / every + 1) * every, tuning);
  std::vector<int64_t> steps;
  for (const int64_t step :
       {int64_t{1}, dense - sparsity.gate_warmup_steps() + 1, dense + 1, refresh, tuning}) {
    if (step >= 1 && step <= std::max<int64_t>(1, config.steps())) steps.push_back(step);
  }
  return steps;
}

}  // namespace

MemoryPlan plan_memory(const TrainConfig& config) {
  const MeshShape shape{config.mesh().data(), config.mesh().expert(), config.mesh().sequence(),
                        config.mesh().tensor()};
  SelfCommunicator world(0, shape.ranks());
  const ProcessMesh mesh(world, shape);
  const Device device{DeviceKind::kPlan};
  Stream stream(device);
  ParameterStore store;
  const Transformer model(config.model(), value_dtype(config), recompute_policy(config), store);
  store.allocate(device, /*gradients=*/true, places_in(mesh));
  const AdamwOptimizer optimizer(config.optimizer(), store, device);
  StepSumsBuffer sums(device, model);
  Arena arena(device, 0);
  for (const int64_t step : stage_begins(config)) {
    Transformer::Run run{.stream = stream,
                         .arena = arena,
                         .sparsity = sparsity_plan(plan_step(config, step), 1),
                         .router = {},
                         .sums = sums.views()};
    (void)model.forward_backward(run, planned_batch(config, shape.data * shape.expert), 1);
  }
  return {.parameters = store.value_bytes(),
          .gradients = store.gradient_bytes(),
          .optimizer = optimizer.bytes(),
          .activations = arena.high_water(),
          .parameter_count = store.elements(),
          .active_parameters = model.active_parameters()};
}

std::string to_text(const MemoryPlan& plan) {
  std::ostringstream out;
  const auto line = [&](const char* what, int64_t bytes) {
    out << "  " << std::left << std::setw(12) << what << std::right << std::setw(12) << std::fixed
        << std::setprecision(3) << static_cast<double>(bytes) / (1 << 30) << " GiB\n";
  };
  out << "parameters: " << plan.parameter_count << ", of which one token meets "
      << plan.active_parameters << "\nmemory of one rank:\n";
  line("parameters", plan.parameters);
  line("gradients", plan.gradients);
  line("optimizer", plan.optimizer);
  line("activations", plan.activations);
  line("total", plan.total());
  return out.str();
}

}  // namespace tessera
