#include "runtime/train/global_batch.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "kernels/block_selection.h"
#include "kernels/elementwise.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

int64_t segments_per_sequence(const TrainConfig& config) {
  return config.data().document_boundaries() ? config.data().max_documents() : 1;
}

ConstTensorView host_view(const std::vector<int32_t>& values) {
  return {values.data(), DType::kI32, {static_cast<int64_t>(values.size())}, Device{}};
}

}  // namespace

int64_t micro_sequences(const TrainConfig& config, int data_ranks) {
  const int64_t per_rank = config.batch().sequences() / data_ranks;
  const int64_t micro = config.batch().micro_sequences();
  return micro > 0 ? std::min(micro, per_rank) : per_rank;
}

Batch planned_batch(const TrainConfig& config, int data_ranks) {
  const Device plan{DeviceKind::kPlan};
  const int64_t sequences = micro_sequences(config, data_ranks);
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

GlobalBatch::GlobalBatch(const TrainConfig& config, const Transformer& model, Communicator& data,
                         Stream& stream, Arena& arena)
    : config_(config),
      model_(model),
      data_(data),
      stream_(stream),
      arena_(arena),
      sums_(stream.device(), model) {
  const int64_t per_rank = config.batch().sequences() / data.size();
  micro_batches_.resize(static_cast<size_t>(per_rank / micro_sequences(config, data.size())));
}

void GlobalBatch::load(const DataLoader& loader, int64_t first) {
  const int64_t sequences = micro_sequences(config_, data_.size());
  int64_t sample = first + data_.rank() * (config_.batch().sequences() / data_.size());
  for (MicroBatch& micro : micro_batches_) {
    loader.fill(sample, sequences, micro);
    sample += sequences;
  }
}

Batch GlobalBatch::view(const MicroBatch& micro) const {
  return {.tokens = host_view(micro.tokens),
          .targets = host_view(micro.targets),
          .starts = host_view(micro.starts),
          .sequences = micro_sequences(config_, data_.size())};
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
  const double parts = static_cast<double>(micro_batches_.size()) * data_.size();
  sums_.clear(stream_);
  return {.stream = stream_,
          .arena = arena_,
          .sparsity = sparsity_plan(plan, gate_rows),
          .router = {.share = static_cast<float>(1 / parts), .ranks = &data_},
          .sums = sums_.views()};
}

GlobalBatch::Totals GlobalBatch::forward_backward(const DataLoader& loader, int64_t first,
                                                  const StepPlan& plan, bool stop) {
  const auto begin = std::chrono::steady_clock::now();
  load(loader, first);
  Totals totals;
  totals.data_seconds = seconds_since(begin);
  double valid = 0;
  for (const MicroBatch& micro : micro_batches_) {
    valid += static_cast<double>(std::count_if(micro.targets.begin(), micro.targets.end(),
                                               [](int32_t t) { return t >= 0; }));
  }
  std::array<double, 2> sizes{valid, count_gate_rows_of(plan)};
  data_.all_reduce_values(sizes);
  Transformer::Run run = start(plan, sizes[1]);
  const auto scale = static_cast<float>(1 / std::max(1.0, sizes[0]));
  for (const MicroBatch& micro : micro_batches_) {
    totals.loss += model_.forward_backward(run, view(micro), scale);
  }
  stream_.synchronize();
  totals.stop = stop ? 1 : 0;
  reduce(totals);
  totals.valid_tokens = sizes[0];
  return totals;
}

void GlobalBatch::reduce(Totals& totals) {
  const auto gate = sums_.views().gate_losses.as<float>();
  const auto router = sums_.views().router_losses.as<float>();
  const auto stats = sums_.views().gate_stats.as<float>();
  std::array<double, 11> values{totals.loss, gate[0],  gate[1],  gate[2],  router[0], router[1],
                                totals.stop, stats[0], stats[1], stats[2], stats[3]};
  data_.all_reduce_values(values);
  totals.loss = values[0];
  totals.gate_kl = values[1];
  totals.gate_entropy = values[2];
  totals.gate_z = values[3];
  totals.balance = values[4];
  totals.router_z = values[5];
  totals.stop = values[6];
  if (values[7] > 0) totals.sparsity = values[8] / values[7];
  if (values[9] > 0) totals.gate_openness = values[10] / values[9];
  if (model_.moe_layers() > 0) {
    data_.all_reduce(stream_, sums_.views().expert_counts, Reduction::kSum);
  }
}

ConstTensorView GlobalBatch::expert_counts() const {
  if (model_.moe_layers() == 0) return {};
  return sums_.views().expert_counts;
}

double GlobalBatch::evaluate(const DataLoader& loader, int64_t batches, const StepPlan& plan) {
  std::array<double, 2> totals{0, 0};  // loss, tokens
  for (int64_t batch = 0; batch < batches; ++batch) {
    load(loader, batch * config_.batch().sequences());
    Transformer::Run run = start(plan, 0);
    for (const MicroBatch& micro : micro_batches_) {
      totals[0] += model_.forward(run, view(micro));
      totals[1] += static_cast<double>(std::count_if(micro.targets.begin(), micro.targets.end(),
                                                     [](int32_t t) { return t >= 0; }));
    }
  }
  data_.all_reduce_values(totals);
  return totals[0] / std::max(1.0, totals[1]);
}

}  // namespace tessera
