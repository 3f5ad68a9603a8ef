#include "runtime/train/global_batch.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "kernels/block_selection.h"
#include "kernels/core/copy.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

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
          .z_loss = static_cast<float>(plan.z_loss * share)};
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
      planner_(mesh, model.planner_options(sequence_order(config))) {}

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
          .sums = sums_.views()};
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
  Transformer::Run run = start(plan, gate_rows_);
  const auto scale = static_cast<float>(1 / std::max(1.0, totals_.valid_tokens));
  run.need_values = [this](int64_t parameter) { exchange_.wait_for_values(parameter); };
  for (const MicroBatch& micro : micro_batches_) {
    if (&micro == &micro_batches_.back()) {
      run.gradients_done = [this](int64_t parameter) { exchange_.ready_from(stream_, parameter); };
    }
    model_.forward_backward(run, view(micro), scale);
  }
}

GlobalBatch::Totals GlobalBatch::reduce(std::span<double> riders) {
  exchange_.add_owned_squares(stream_, sums_.views().squares);
  if (model_.moe_layers() > 0) {
    mesh_.world().all_reduce(stream_, sums_.views().expert_counts, Reduction::kSum);
  }
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
  return totals;
}

ConstTensorView GlobalBatch::expert_counts() const {
  if (model_.moe_layers() == 0) return {};
  return sums_.views().expert_counts;
}

double GlobalBatch::evaluate(const DataLoader& loader, int64_t batches, const StepPlan& plan) {
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
  std::array<double, 2> totals{sums_.read(stream_).loss.as<double>()[0],
                               targets / mesh_.group(kContext).size()};
  mesh_.world().all_reduce_values(totals);
  mesh_.world().log().set_phase(Phase::kBetweenSteps);
  return totals[0] / std::max(1.0, totals[1]);
}

}  // namespace tessera
