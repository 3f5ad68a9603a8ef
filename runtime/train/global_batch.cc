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

int64_t segments_per_sequence(const TrainConfig& config) {
  return config.data().document_boundaries() ? config.data().max_documents() : 1;
}

}  // namespace

int64_t micro_sequences(const TrainConfig& config, int batch_ranks) {
  const int64_t per_rank = config.batch().sequences() / batch_ranks;
  const int64_t micro = config.batch().micro_sequences();
  return micro > 0 ? std::min(micro, per_rank) : per_rank;
}

Batch planned_batch(const TrainConfig& config, int batch_ranks) {
  const Device plan{DeviceKind::kPlan};
  const int64_t sequences = micro_sequences(config, batch_ranks);
  const int64_t tokens = sequences * config.batch().sequence_length();
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
      gates_(stream.device(), model),
      planner_(mesh, model.planner_options(sequence_order(config))) {
  const int parts = batch_ranks().size();
  const int64_t per_rank = config.batch().sequences() / parts;
  micro_batches_.resize(static_cast<size_t>(per_rank / micro_sequences(config, parts)));
}

void GlobalBatch::load(const DataLoader& loader, int64_t first) {
  // Ranks that work on the same sequences load all of them: reading is cheap, and every rank then
  // knows who needs what.
  const int parts = batch_ranks().size();
  const int64_t sequences = micro_sequences(config_, parts);
  int64_t sample = first + batch_ranks().rank() * (config_.batch().sequences() / parts);
  for (MicroBatch& micro : micro_batches_) {
    loader.fill(sample, sequences, micro);
    sample += sequences;
  }
}

Batch GlobalBatch::view(const MicroBatch& micro) const {
  return {.tokens = host_view(micro.tokens),
          .targets = host_view(micro.targets),
          .starts = host_view(micro.starts),
          .sequences = micro_sequences(config_, batch_ranks().size())};
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
  const int64_t sequences = micro_sequences(config_, batch_ranks().size());
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

void GlobalBatch::forward_backward(const DataLoader& loader, int64_t first, const StepPlan& plan) {
  const auto begin = std::chrono::steady_clock::now();
  mesh_.world().log().set_phase(Phase::kData);
  load(loader, first);
  totals_ = {.data_seconds = seconds_since(begin)};
  double valid = 0;
  for (const MicroBatch& micro : micro_batches_) {
    valid += static_cast<double>(std::count_if(micro.targets.begin(), micro.targets.end(),
                                               [](int32_t t) { return t >= 0; }));
  }
  // Ranks of one context group count the same sequences: only the batch group adds up.
  std::array<double, kSizes> sizes{valid, count_gate_rows_of(plan)};
  mesh_.group(kBatch).all_reduce_values(sizes);
  totals_.valid_tokens = sizes[0];
  sums_.clear(stream_);
  plan_ = plan;
  Transformer::Run run = start(plan_, sizes[1]);
  if (plan.measure_gates) {
    gates_.clear(stream_, plan.heat_maps);
    run.gates = gates_.views(plan.heat_maps);
  }
  const auto scale = static_cast<float>(1 / std::max(1.0, sizes[0]));
  run.need_values = [this](int64_t parameter) { exchange_.wait_for_values(parameter); };
  for (const MicroBatch& micro : micro_batches_) {
    if (&micro == &micro_batches_.back()) {
      run.gradients_done = [this](int64_t parameter) { exchange_.ready_from(stream_, parameter); };
    }
    Batch batch = view(micro);
    std::vector<int32_t> samples;
    if (plan.measure_gates) samples = samples_of(micro, plan.step);
    batch.samples = samples;
    model_.forward_backward(run, batch, scale);
  }
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

double GlobalBatch::evaluate(const DataLoader& loader, int64_t batches, const StepPlan& plan) {
  mesh_.world().log().set_phase(Phase::kValidation);
  exchange_.finish_gathers();
  double targets = 0;  // of this rank's sequences
  sums_.clear(stream_);
  for (int64_t batch = 0; batch < batches; ++batch) {
    load(loader, batch * config_.batch().sequences());
    Transformer::Run run = start(plan, 0);
    for (const MicroBatch& micro : micro_batches_) {
      model_.forward(run, view(micro));
      targets += static_cast<double>(std::count_if(micro.targets.begin(), micro.targets.end(),
                                                   [](int32_t t) { return t >= 0; }));
    }
  }
  // Every rank of a context group has counted the same tokens.
  mesh_.world().synchronize(stream_);
  std::array<double, 2> totals{sums_.read(stream_).loss.as<double>()[0],
                               targets / mesh_.group(kContext).size()};
  mesh_.world().all_reduce_values(totals);
  mesh_.world().log().set_phase(Phase::kBetweenSteps);
  return totals[0] / std::max(1.0, totals[1]);
}

std::vector<double> GlobalBatch::losses(const DataLoader& loader, int64_t first, int64_t batches,
                                        const StepPlan& plan) {
  mesh_.world().log().set_phase(Phase::kValidation);
  exchange_.finish_gathers();
  std::vector<double> sums;  // loss and targets of each batch
  for (int64_t batch = 0; batch < batches; ++batch) {
    load(loader, first + batch * config_.batch().sequences());
    sums_.clear(stream_);
    Transformer::Run run = start(plan, 0);
    double targets = 0;
    for (const MicroBatch& micro : micro_batches_) {
      model_.forward(run, view(micro));
      targets += static_cast<double>(std::count_if(micro.targets.begin(), micro.targets.end(),
                                                   [](int32_t t) { return t >= 0; }));
    }
    mesh_.world().synchronize(stream_);
    sums.push_back(sums_.read(stream_).loss.as<double>()[0]);
    sums.push_back(targets / mesh_.group(kContext).size());
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
