#include "runtime/train/planned_rank.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

#include "model/gate_sums.h"
#include "model/sparsity_budget.h"
#include "model/step_sums.h"
#include "parallel/self_communicator.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/adamw_optimizer.h"
#include "runtime/train/global_batch.h"
#include "runtime/train/model_options.h"
#include "runtime/train/schedule.h"
#include "runtime/train/trainer.h"

namespace tessera {

namespace {

/// A step whose shapes may be new, with the transition held as long as it may be.
struct ShapeStep {
  int64_t step = 1;
  int64_t held = 0;
};

// The first step of each stage: kept blocks only fall after the first step of the transition, but
// for its dense refreshes.
std::vector<ShapeStep> stage_begins(const TrainConfig& config) {
  const SparsityConfig& sparsity = config.sparsity();
  const int64_t dense = sparsity.dense_steps();
  const int64_t tuning = dense + sparsity.transition_steps() + 1;
  const int64_t every = std::max<int64_t>(1, sparsity.dense_refresh());
  const int64_t refresh = std::min((dense / every + 1) * every, tuning);
  std::vector<ShapeStep> steps;
  for (const int64_t step :
       {int64_t{1}, dense - sparsity.gate_warmup_steps() + 1, dense + 1, refresh, tuning}) {
    if (step >= 1 && step <= std::max<int64_t>(1, config.steps())) steps.push_back({step});
  }
  return steps;
}

// The steps where the curriculum changes the batch, and the dense refresh after each.
std::vector<ShapeStep> batch_begins(const TrainConfig& config) {
  const SparsityConfig& sparsity = config.sparsity();
  const int64_t dense = sparsity.dense_steps();
  const int64_t limit = sparsity.guard_tolerance() > 0 ? sparsity.guard_limit() : 0;
  const auto most_held = [&](int64_t step) {
    return std::clamp<int64_t>(step - dense - 1, 0, limit);
  };
  std::vector<ShapeStep> steps;
  for (const int64_t step : batch_changes(config)) {
    if (step == 1 || step > config.steps()) continue;
    steps.push_back({step, most_held(step)});
    if (sparsity.dense_refresh() == 0) continue;
    const int64_t refresh =
        (step - 1) / sparsity.dense_refresh() * sparsity.dense_refresh() + sparsity.dense_refresh();
    if (refresh <= config.steps()) steps.push_back({refresh, most_held(refresh)});
  }
  return steps;
}

/// Whether full attention may be wanted in any step: by a hook, or by the guard, to compare.
bool may_attend_to_everything(const TrainConfig& config) {
  const SparsityConfig& sparsity = config.sparsity();
  const bool compares =
      sparsity.guard() == SparsityConfig::PAIRED && sparsity.guard_tolerance() > 0;
  return compares || !config.hooks().empty();
}

// What is run for the memory alone: where any step may want more than its stage does, all.
std::vector<ShapeStep> shapes_besides(const TrainConfig& config) {
  std::vector<ShapeStep> steps = batch_begins(config);
  if (!may_attend_to_everything(config)) return steps;
  const std::vector<ShapeStep> stages = stage_begins(config);
  steps.insert(steps.end(), stages.begin(), stages.end());
  return steps;
}

MeshShape shape_of(const TrainConfig& config) {
  const MeshConfig& mesh = config.mesh();
  return {mesh.data(), mesh.expert(), mesh.sequence(), mesh.tensor()};
}

int64_t whole_elements(const ParameterStore& store) {
  std::set<std::string> counted;  // a parameter may be declared in several parts
  int64_t sum = 0;
  for (const Parameter& parameter : store.all()) {
    if (!parameter.trained || !counted.insert(parameter.name).second) continue;
    sum += parameter.shard.whole.elements();
  }
  return sum;
}

/// to += times * (after - before)
void add_difference(std::vector<GroupTraffic>& to, const std::vector<GroupTraffic>& before,
                    const std::vector<GroupTraffic>& after, int64_t times) {
  for (size_t i = 0; i < to.size(); ++i) {
    const Traffic& a = before[i].traffic;
    const Traffic& b = after[i].traffic;
    to[i].traffic.calls += times * (b.calls - a.calls);
    to[i].traffic.sent += times * (b.sent - a.sent);
    to[i].traffic.received += times * (b.received - a.received);
  }
}

/// What run_training builds and what its steps exchange, on a planning device.
class PlannedRank {
 public:
  PlannedRank(const TrainConfig& config, int rank)
      : config_(config),
        world_(rank, shape_of(config).ranks()),
        mesh_(world_, shape_of(config)),
        model_(config.model(), value_dtype(config), recompute_policy(config), store_,
               place_in(mesh_)),
        planner_(mesh_, model_.planner_options(sequence_order(config))),
        optimizer_(config.optimizer(), allocated(store_, mesh_), kPlan),
        exchange_(store_.buckets(), mesh_),
        sums_(kPlan, model_),
        gates_(kPlan, model_) {}

  /// As run_step of the trainer.
  StepTraffic run_step(const StepPlan& plan);
  void finish() { exchange_.finish_gathers(); }
  MemoryPlan memory();
  int64_t activations() const { return arena_.high_water(); }

 private:
  static constexpr Device kPlan{DeviceKind::kPlan};

  static ParameterStore& allocated(ParameterStore& store, const ProcessMesh& mesh) {
    store.allocate(kPlan, /*gradients=*/true, places_in(mesh));
    return store;
  }
  void take_gradients(GroupTraffic& group, int64_t times) const;
  void finish_step();
  int64_t snapshot_bytes();

  const TrainConfig& config_;
  SelfCommunicator world_;
  ProcessMesh mesh_;
  Stream stream_{kPlan};
  Arena arena_{kPlan, 0};
  ParameterStore store_;
  Transformer model_;
  TokenPlanner planner_;
  AdamwOptimizer optimizer_;
  BucketExchange exchange_;
  StepSumsBuffer sums_;
  GateSumsBuffer gates_;
  int64_t batch_bytes_ = 0;  ///< of the largest global batch, this rank's part
};

StepTraffic PlannedRank::run_step(const StepPlan& plan) {
  Transformer::Run run{.stream = stream_,
                       .arena = arena_,
                       .planner = planner_,
                       .sparsity = sparsity_plan(plan, 1),
                       .router = {},
                       .sums = sums_.views(),
                       .kept_of_layers = plan.kept_of_layers};
  const BatchSize size = size_of(config_, plan);
  const int64_t parts = mesh_.group(kBatch).size();
  Batch batch = planned_batch(config_, size, static_cast<int>(parts));
  const int64_t micro_batches = size.sequences / parts / batch.sequences;
  const int64_t ids = batch.tokens.bytes() + batch.targets.bytes() + batch.starts.bytes();
  batch_bytes_ = std::max(batch_bytes_, micro_batches * ids);
  const std::vector<int32_t> samples(static_cast<size_t>(
      std::min<int64_t>(config_.monitor().sample_rows(), batch.tokens.shape()[0])));
  if (plan.measure_gates) {
    run.gates = gates_.views(plan.heat_maps);
    batch.samples = samples;
  }
  const std::vector<GroupTraffic> begin = traffic_of(mesh_);
  mesh_.world().plan_values(GlobalBatch::kSizes);
  run.need_values = [this](int64_t parameter) { exchange_.wait_for_values(parameter); };
  run.gradients_done = [this](int64_t parameter) { exchange_.ready_from(stream_, parameter); };
  const std::vector<GroupTraffic> first = traffic_of(mesh_);
  model_.forward_backward(run, batch, 1);
  exchange_.finish_sums(stream_);
  const std::vector<GroupTraffic> last = traffic_of(mesh_);
  if (plan.measure_gates) {
    mesh_.world().all_reduce(stream_, gates_.views(true).figures, Reduction::kSum);
    mesh_.world().all_reduce(stream_, gates_.views(true).maps, Reduction::kSum);
  }
  finish_step();
  const std::vector<GroupTraffic> end = traffic_of(mesh_);
  StepTraffic traffic{.step = plan.step, .stage = plan.stage, .groups = end};
  for (GroupTraffic& group : traffic.groups) group.traffic = {};
  add_difference(traffic.groups, begin, end, 1);
  // The other micro-batches exchange as much as this one, but for the gradients.
  add_difference(traffic.groups, first, last, micro_batches - 1);
  for (GroupTraffic& group : traffic.groups) take_gradients(group, micro_batches - 1);
  return traffic;
}

/// Takes `times` sums of all gradients away from `group`.
void PlannedRank::take_gradients(GroupTraffic& group, int64_t times) const {
  for (const Bucket& bucket : exchange_.buckets()) {
    const Communicator& ranks = group_of(mesh_, bucket.placement);
    if (ranks.name() != group.group) continue;
    const int64_t bytes = bucket.owned_gradients().bytes() * (ranks.size() - 1);
    group.traffic.calls -= times;
    group.traffic.sent -= times * bytes;
    group.traffic.received -= times * bytes;
  }
}

void PlannedRank::finish_step() {
  if (model_.moe_layers() > 0) {
    mesh_.world().all_reduce(stream_, sums_.views().expert_counts, Reduction::kSum);
  }
  mesh_.world().plan_values(GlobalBatch::kTotals + kStepRiders);
  for (size_t bucket = 0; bucket < exchange_.buckets().size(); ++bucket) {
    exchange_.start_gather(stream_, bucket);
  }
}

int64_t PlannedRank::snapshot_bytes() {
  const bool on_gpu = config_.runtime().device() == RuntimeConfig::GPU;
  if (!saves_in_background(config_) && !on_gpu) return 0;
  std::vector<NamedTensor> buffers;
  if (world_.rank() == 0) buffers = named_parameters(store_).buffers;
  return Snapshot::bytes_for(saved_groups(optimizer_, buffers));
}

MemoryPlan PlannedRank::memory() {
  return {.rank = world_.rank(),
          .parameters = store_.value_bytes(),
          .gradients = store_.gradient_bytes(),
          .optimizer = optimizer_.bytes(),
          .activations = arena_.high_water(),
          .communication = world_.log().scratch(),
          .batch = batch_bytes_,
          .snapshot = snapshot_bytes(),
          .parameter_count = store_.elements(),
          .model_parameters = whole_elements(store_),
          .active_parameters = model_.active_parameters()};
}

}  // namespace

namespace {

bool has_budgets(const GateControlConfig& control) {
  return control.method() != GateControlConfig::NONE || control.budgets_size() > 0;
}

/// The step of the same stage that needs most memory: it measures, if some step does, and every
/// layer keeps as many blocks as the control of the gates may give it.
StepPlan largest_of(const TrainConfig& config, StepPlan plan) {
  const int64_t every = config.monitor().gate_every();
  plan.measure_gates = every > 0 && every <= config.steps();
  plan.heat_maps = plan.measure_gates;
  const GateControlConfig& control = config.gate_control();
  if (!has_budgets(control)) return plan;
  const double most = control.most() * static_cast<double>(plan.kept_blocks);
  plan.kept_of_layers.assign(static_cast<size_t>(config.model().layers()),
                             std::min(most_blocks(config.model(), plan.sequence_length),
                                      static_cast<int64_t>(std::ceil(most))));
  return plan;
}

}  // namespace

RankPlan plan_rank(const TrainConfig& config, int rank) {
  PlannedRank planned(config, rank);
  RankPlan plan;
  // Without measures: those whose measures may matter.
  int64_t heaviest = 1;
  StepPlan most_chosen;
  for (const ShapeStep& shape : stage_begins(config)) {
    const int64_t before = planned.activations();
    StepPlan step_plan = plan_step(config, shape.step);
    step_plan.measure_gates = false;
    StepTraffic traffic = planned.run_step(step_plan);
    if (planned.activations() > before) heaviest = shape.step;
    if (step_plan.gated && step_plan.kept_blocks > most_chosen.kept_blocks) most_chosen = step_plan;
    const bool is_new = plan.steps.empty() || plan.steps.back().stage != traffic.stage;
    if (is_new) plan.steps.push_back(std::move(traffic));
    // Budgets may make another step the heaviest.
    if (has_budgets(config.gate_control())) (void)planned.run_step(largest_of(config, step_plan));
  }
  (void)planned.run_step(largest_of(config, plan_step(config, heaviest)));
  if (most_chosen.gated && most_chosen.step != heaviest) {
    (void)planned.run_step(largest_of(config, most_chosen));
  }
  // For the memory alone.
  for (const ShapeStep& shape : shapes_besides(config)) {
    StepPlan step_plan = plan_step(config, shape.step, shape.held);
    (void)planned.run_step(largest_of(config, step_plan));
    if (!step_plan.gated || !may_attend_to_everything(config)) continue;
    attend_to_everything(config, step_plan);
    (void)planned.run_step(largest_of(config, step_plan));
  }
  // Once more for the memory, with values still on their way from the step before.
  (void)planned.run_step(plan_step(config, plan.steps.back().step));
  planned.finish();
  plan.memory = planned.memory();
  return plan;
}

}  // namespace tessera
