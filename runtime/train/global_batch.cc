#include "runtime/train/global_batch.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "kernels/block_selection.h"
#include "kernels/core/copy.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/gate_samples.h"

namespace tessera {

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// (loss scale, kl, entropy, z_loss): they follow from what the samples of a step are.
constexpr int64_t kFactors = 4;

int64_t segments_per_sequence(const TrainConfig& config) {
  return config.data().document_boundaries() ? config.data().max_documents() : 1;
}

}  // namespace

BatchSize size_of(const TrainConfig& config, const StepPlan& plan) {
  const BatchConfig& batch = config.batch();
  return {
      .sequences = plan.sequences > 0 ? plan.sequences : batch.sequences(),
      .sequence_length = plan.sequence_length > 0 ? plan.sequence_length : batch.sequence_length()};
}

Batch planned_batch(const TrainConfig& config, const BatchSize& size, int batch_ranks) {
  const Device plan{DeviceKind::kPlan};
  const int64_t sequences = micro_sequences_of(config, size, batch_ranks);
  const int64_t tokens = sequences * size.sequence_length;
  const Shape starts{sequences * segments_per_sequence(config) + 1};
  return {.tokens = {nullptr, DType::kI32, {tokens}, plan},
          .targets = {nullptr, DType::kI32, {tokens}, plan},
          .starts = {nullptr, DType::kI32, starts, plan},
          .sequences = sequences};
}

SparsityPlan sparsity_plan(const StepPlan& plan, double gate_rows) {
  const double share = gate_rows > 0 ? 1 / gate_rows : 0;
  return {.gated = plan.gated,
          .kept = plan.kept_blocks,
          .window = plan.window,
          .strength = static_cast<float>(plan.gate_strength),
          .kl = static_cast<float>(plan.kl * share),
          .entropy = static_cast<float>(plan.entropy * share),
          .z_loss = static_cast<float>(plan.z_loss * share),
          .draw = static_cast<uint64_t>(plan.step)};
}

SequenceOrder sequence_order(const TrainConfig& config) {
  return config.mesh().sequence_order() == MeshConfig::ZIGZAG ? SequenceOrder::kZigzag
                                                              : SequenceOrder::kContiguous;
}

GlobalBatch::GlobalBatch(const TrainConfig& config, const Transformer& model,
                         const ProcessMesh& mesh, BucketExchange& exchange, Stream& stream,
                         Arena& arena)
    : config_(config),
      model_(model),
      mesh_(mesh),
      exchange_(exchange),
      stream_(stream),
      arena_(arena),
      sums_(stream.device(), model),
      factors_(stream.device(), kFactors * int64_t{sizeof(float)}),
      gates_(stream.device(), model),
      planner_(mesh, model.planner_options(sequence_order(config))),
      graph_(stream, mesh.world().log(), graph_obstacle(config, mesh)) {}

void GlobalBatch::fill_micro_batches(const FillRows& fill, const BatchSize& size) {
  // Ranks that work on the same sequences load all of them: reading is cheap, and every rank then
  // knows who needs what.
  const int64_t parts = batch_ranks().size();
  const int64_t of_rank = size.sequences / parts;
  micro_sequences_ = micro_sequences_of(config_, size, parts);
  micro_batches_.resize(static_cast<size_t>(of_rank / micro_sequences_));
  int64_t row = batch_ranks().rank() * of_rank;
  for (MicroBatch& micro : micro_batches_) {
    fill(row, micro_sequences_, micro);
    row += micro_sequences_;
  }
}

double GlobalBatch::count_targets() const {
  double count = 0;
  for (const MicroBatch& micro : micro_batches_) {
    count += static_cast<double>(std::count_if(micro.targets.begin(), micro.targets.end(),
                                               [](int32_t t) { return t >= 0; }));
  }
  return count;
}

Batch GlobalBatch::view(const MicroBatch& micro) const {
  return {.tokens = host_view(micro.tokens),
          .targets = host_view(micro.targets),
          .starts = host_view(micro.starts),
          .sequences = micro_sequences_};
}

double GlobalBatch::count_gate_rows_of(const StepPlan& plan) const {
  if (!plan.gated) return 0;
  const AttentionConfig& attention = config_.model().attention();
  const BlockRule rule{.sink_blocks = attention.sink_blocks(),
                       .window_blocks = attention.window_blocks(),
                       .kept = plan.kept_blocks};
  double rows = 0;
  for (const MicroBatch& micro : micro_batches_) {
    rows += static_cast<double>(count_gate_rows(micro.starts, attention.block(), rule));
  }
  return rows;
}

Transformer::Run GlobalBatch::start(const StepPlan& plan, double gate_rows) {
  const double parts = static_cast<double>(micro_batches_.size()) * batch_ranks().size();
  return {.stream = stream_,
          .arena = arena_,
          .planner = planner_,
          .sparsity = sparsity_plan(plan, gate_rows),
          .router = {.share = static_cast<float>(1 / parts)},
          .sums = sums_.views(),
          .kept_of_layers = plan.kept_of_layers};
}

std::vector<int32_t> GlobalBatch::samples_of(const MicroBatch& micro, int64_t step) const {
  const auto number = static_cast<int64_t>(&micro - micro_batches_.data());
  const int64_t parts = batch_ranks().size();
  const int64_t sequences = micro_sequences_;
  const int64_t length = std::ssize(micro.tokens) / sequences;
  const int64_t per_rank = std::ssize(micro_batches_) * sequences;
  const int64_t first = batch_ranks().rank() * per_rank + number * sequences;
  std::vector<int32_t> tokens;
  for (const GateSample& sample :
       gate_samples(config_.monitor().sample_rows(), parts * per_rank, length, step)) {
    const int64_t sequence = sample.sequence - first;
    if (sequence < 0 || sequence >= sequences) continue;
    tokens.push_back(static_cast<int32_t>(sequence * length + sample.position));
  }
  return tokens;
}

void GlobalBatch::load(const FillRows& fill, const StepPlan& plan, PlanRiders& riders) {
  const auto begin = std::chrono::steady_clock::now();
  mesh_.world().log().set_phase(Phase::kData);
  fill_micro_batches(fill, size_of(config_, plan));
  totals_ = {.data_seconds = seconds_since(begin)};
  // Ranks of one context group count the same sequences.
  const double copies = mesh_.group(kContext).size();
  std::array<double, kSizes> sizes{count_targets(), count_gate_rows_of(plan)};
  std::copy(riders.begin(), riders.end(), sizes.begin() + 2);
  mesh_.world().all_reduce_values(sizes);
  totals_.valid_tokens = sizes[0] / copies;
  gate_rows_ = sizes[1] / copies;
  std::copy(sizes.begin() + 2, sizes.end(), riders.begin());
}

void GlobalBatch::forward_backward(const DataLoader& loader, int64_t first, const StepPlan& plan) {
  const BatchSize size = size_of(config_, plan);
  PlanRiders riders{};
  load([&](int64_t row, int64_t rows,
           MicroBatch& out) { loader.fill_pieces(first + row, rows, size.sequence_length, out); },
       plan, riders);
  forward_backward(plan);
}

void GlobalBatch::forward_backward(const StepPlan& plan) {
  sums_.clear(stream_);
  plan_ = plan;
  Transformer::Run run = start(plan_, gate_rows_);
  if (plan.measure_gates) {
    gates_.clear(stream_, plan.heat_maps);
    run.gates = gates_.views(plan.heat_maps);
  }
  send_factors(run.sparsity, static_cast<float>(1 / std::max(1.0, totals_.valid_tokens)));
  run.sparsity.coefficients = factors_.view(DType::kF32, {kFactors}).rows(1, kFactors - 1);
  if (mesh_.world().size() > 1) {
    run.need_values = [this](int64_t parameter) {
      graph_.between([this, parameter] { exchange_.wait_for_values(parameter); });
    };
    run.gradients_done = [this](int64_t parameter) {
      graph_.between([this, parameter] {
        if (last_) exchange_.ready_from(stream_, parameter);
      });
    };
  }
  graph_.begin_step();
  for (const MicroBatch& micro : micro_batches_) {
    last_ = &micro == &micro_batches_.back();
    Batch batch = view(micro);
    std::vector<int32_t> samples;
    if (plan.measure_gates) samples = samples_of(micro, plan.step);
    batch.samples = samples;
    run_micro_batch(run, batch);
  }
}

void GlobalBatch::send_factors(const SparsityPlan& sparsity, float loss_scale) {
  const std::vector<float> factors{loss_scale, sparsity.kl, sparsity.entropy, sparsity.z_loss};
  copy(stream_, host_view(factors), factors_.view(DType::kF32, {kFactors}));
}

// The plan of the tokens is the host's work, and copied anew for each micro-batch: the graph begins
// behind it.
void GlobalBatch::run_micro_batch(Transformer::Run& run, const Batch& batch) {
  const Arena::Scope scratch(arena_);
  const TokenPlan& tokens = planner_.plan(stream_, arena_, batch, run.sparsity);
  const LossScale scale{.from = factors_.view(DType::kF32, {1})};
  const auto work = [&] { model_.forward_backward(run, tokens, scale); };
  // A step that measures its gates has other kernels, for rows that are new each time.
  if (plan_.measure_gates) return work();
  StepGraph::Key key = StepGraph::key_of(tokens, run.sparsity);
  key.kept_of_layers.assign(run.kept_of_layers.begin(), run.kept_of_layers.end());
  key.router_share = run.router.share;
  graph_.run(key, work);
}

GlobalBatch::Totals GlobalBatch::reduce(std::span<double> riders) {
  exchange_.add_owned_squares(stream_, sums_.views().squares);
  if (model_.moe_layers() > 0) {
    mesh_.world().all_reduce(stream_, sums_.views().expert_counts, Reduction::kSum);
  }
  GateSums gates;
  if (plan_.measure_gates) gates = start_reduce_gates();
  mesh_.world().synchronize(stream_);
  const StepSums& sums = sums_.read(stream_);
  const auto gate = sums.gate_losses.as<float>();
  const auto router = sums.router_losses.as<float>();
  const auto stats = sums.gate_stats.as<float>();
  const double dropped = sums.dropped_pairs.as<float>()[0];
  const double squares = sums.squares.as<double>()[0];
  std::vector<double> values{sums.loss.as<double>()[0],
                             gate[0],
                             gate[1],
                             gate[2],
                             router[0],
                             router[1],
                             squares,
                             stats[0],
                             stats[1],
                             stats[2],
                             stats[3],
                             dropped,
                             stats[4],
                             stats[5]};
  CHECK(values.size() == kTotals, "GlobalBatch: ", values.size(), " totals, expected ", kTotals);
  values.insert(values.end(), riders.begin(), riders.end());
  mesh_.world().all_reduce_values(values);
  std::copy(values.begin() + kTotals, values.end(), riders.begin());
  Totals totals = totals_;
  totals.loss = values[0];
  totals.gate_kl = values[1];
  totals.gate_entropy = values[2];
  totals.gate_z = values[3];
  totals.balance = values[4];
  totals.router_z = values[5];
  totals.squares = values[6];
  if (values[7] > 0) totals.sparsity = values[8] / values[7];
  if (values[9] > 0) totals.gate_openness = values[10] / values[9];
  totals.dropped_pairs = values[11];
  if (values[13] > 0) totals.tree_recall = values[12] / values[13];
  if (model_.moe_layers() > 0) totals.expert_counts = sums.expert_counts;
  if (plan_.measure_gates) {
    totals.gates =
        gate_measures(gates.figures, gates.maps, plan_.kept_of_layers, plan_.kept_blocks);
  }
  return totals;
}

/// Sums over all ranks, on their way to the host: there once the stream is past it.
GateSums GlobalBatch::start_reduce_gates() {
  const GateSums sums = gates_.views(plan_.heat_maps);
  mesh_.world().all_reduce(stream_, sums.figures, Reduction::kSum);
  if (plan_.heat_maps) mesh_.world().all_reduce(stream_, sums.maps, Reduction::kSum);
  return gates_.start_read(stream_, plan_.heat_maps);
}

ConstTensorView GlobalBatch::expert_counts() const {
  if (model_.moe_layers() == 0) return {};
  return sums_.views().expert_counts;
}

GlobalBatch::Evaluation GlobalBatch::evaluate(const DataLoader& loader, int64_t batches,
                                              const StepPlan& plan) {
  mesh_.world().log().set_phase(Phase::kValidation);
  exchange_.finish_gathers();
  const BatchSize size = size_of(config_, plan);
  const int64_t tokens = batches * config_.batch().sequences() * config_.batch().sequence_length();
  double targets = 0;  // of this rank's sequences
  sums_.clear(stream_);
  for (int64_t first = 0; first * size.sequence_length < tokens; first += size.sequences) {
    fill_micro_batches(
        [&](int64_t row, int64_t rows, MicroBatch& out) {
          loader.fill_pieces(first + row, rows, size.sequence_length, out);
        },
        size);
    Transformer::Run run = start(plan, 0);
    for (const MicroBatch& micro : micro_batches_) model_.forward(run, view(micro));
    targets += count_targets();
  }
  // Every rank of a context group has counted the same tokens.
  mesh_.world().synchronize(stream_);
  const StepSums& sums = sums_.read(stream_);
  std::array<double, 3> totals{sums.loss.as<double>()[0], sums.hits.as<double>()[0],
                               targets / mesh_.group(kContext).size()};
  mesh_.world().all_reduce_values(totals);
  mesh_.world().log().set_phase(Phase::kBetweenSteps);
  const double count = std::max(1.0, totals[2]);
  return {.loss = totals[0] / count, .accuracy = totals[1] / count};
}

// Of this rank's part of the batch that was filled in: a sum.
double GlobalBatch::forward_loss(const StepPlan& plan) {
  sums_.clear(stream_);
  Transformer::Run run = start(plan, 0);
  for (const MicroBatch& micro : micro_batches_) model_.forward(run, view(micro));
  mesh_.world().synchronize(stream_);
  return sums_.read(stream_).loss.as<double>()[0];
}

double GlobalBatch::loss_under(const StepPlan& plan) {
  mesh_.world().log().set_phase(Phase::kValidation);
  exchange_.finish_gathers();
  std::array<double, 1> loss{forward_loss(plan)};
  mesh_.world().all_reduce_values(loss);
  mesh_.world().log().set_phase(Phase::kData);
  return loss[0] / std::max(1.0, totals_.valid_tokens);
}

std::vector<double> GlobalBatch::losses(std::span<const FillRows> batches, const StepPlan& plan) {
  mesh_.world().log().set_phase(Phase::kValidation);
  exchange_.finish_gathers();
  std::vector<double> sums;  // loss and targets of each batch
  for (const FillRows& fill : batches) {
    fill_micro_batches(fill, size_of(config_, plan));
    sums.push_back(forward_loss(plan));
    sums.push_back(count_targets() / mesh_.group(kContext).size());
  }
  mesh_.world().all_reduce_values(sums);
  std::vector<double> losses;
  for (size_t i = 0; i < sums.size(); i += 2) {
    losses.push_back(sums[i] / std::max(1.0, sums[i + 1]));
  }
  mesh_.world().log().set_phase(Phase::kBetweenSteps);
  return losses;
}

}  // namespace tessera
