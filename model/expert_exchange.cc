#include "model/expert_exchange.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/permute_tokens.h"

namespace tessera {

namespace {

// On a plan nobody knows the counts: as if the load were even.
std::vector<int64_t> counts_of(StepContext& step, const TensorView& rows, int64_t all) {
  const auto ranks = static_cast<size_t>(rows.shape()[0]);
  if (step.stream.on(DeviceKind::kPlan)) {
    return std::vector<int64_t>(ranks, all / static_cast<int64_t>(ranks));
  }
  const auto counts = rows.as<int64_t>();
  return {counts.begin(), counts.end()};
}

}  // namespace

ExpertExchange::ExpertExchange(int64_t experts, int64_t experts_per_token, double capacity_factor,
                               int ranks)
    : experts_(experts),
      experts_per_token_(experts_per_token),
      capacity_factor_(capacity_factor),
      ranks_(ranks) {
  CHECK(experts % ranks == 0, "expert exchange: ", experts, " experts over ", ranks,
        " ranks, expected a multiple");
}

int64_t ExpertExchange::pairs_per_expert(int64_t tokens) const {
  if (capacity_factor_ == 0) return 0;
  const double even =
      static_cast<double>(tokens * experts_per_token_) / static_cast<double>(experts_);
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(capacity_factor_ * even)));
}

int64_t ExpertExchange::most_pairs(int64_t tokens) const {
  const int64_t all = tokens * experts_per_token_;
  const int64_t bound = pairs_per_expert(tokens);
  return bound == 0 ? all : std::min(all, experts_ * bound);
}

int64_t ExpertExchange::capacity(int64_t tokens) const {
  const int64_t all = tokens * std::min(experts_per_token_, local_experts());
  const int64_t bound = pairs_per_expert(tokens);
  return ranks_ * (bound == 0 ? all : std::min(all, local_experts() * bound));
}

ExpertExchange::Decision ExpertExchange::allocate(StepContext& step, int64_t tokens) const {
  if (alone()) return {};
  Arena& arena = step.arena;
  return {.counts = arena.allocate(DType::kI32, {ranks_, local_experts()}, "moe.counts_received"),
          .send_rows = arena.allocate(DType::kI64, {ranks_}, "moe.send_rows"),
          .receive_rows = arena.allocate(DType::kI64, {ranks_}, "moe.receive_rows"),
          .order = arena.allocate(DType::kI32, {capacity(tokens)}, "moe.order"),
          .offsets = arena.allocate(DType::kI32, {local_experts() + 1}, "moe.local_offsets")};
}

void ExpertExchange::decide(StepContext& step, ConstTensorView offsets,
                            const Decision& decision) const {
  const Arena::Scope scratch(step.arena);
  const int64_t local = local_experts();
  const TensorView own = step.arena.allocate(DType::kI32, {ranks_, local}, "moe.counts_sent");
  const bool planned = step.stream.on(DeviceKind::kPlan);
  if (!planned) {
    const auto begins = offsets.as<int32_t>();
    const auto counts = own.as<int32_t>();
    const auto rows = decision.send_rows.as<int64_t>();
    for (size_t e = 0; e < counts.size(); ++e) counts[e] = begins[e + 1] - begins[e];
    for (size_t r = 0; r < rows.size(); ++r) {
      const auto first = r * static_cast<size_t>(local);
      rows[r] = begins[first + static_cast<size_t>(local)] - begins[first];
    }
  }
  const std::vector<int64_t> one(static_cast<size_t>(ranks_), 1);
  step.mesh.along(Axis::kExpert).all_to_all(step.stream, own, one, decision.counts, one);
  if (!planned) {
    const auto counts = decision.counts.as<int32_t>();
    const auto rows = decision.receive_rows.as<int64_t>();
    for (size_t r = 0; r < rows.size(); ++r) {
      rows[r] = 0;
      for (size_t e = 0; e < static_cast<size_t>(local); ++e) {
        rows[r] += counts[r * static_cast<size_t>(local) + e];
      }
    }
  }
  merge_expert_rows(
      step.stream,
      {.order = decision.order, .offsets = decision.offsets, .counts = decision.counts});
}

int64_t ExpertExchange::rows(StepContext& step, const Decision& decision) const {
  if (step.stream.on(DeviceKind::kPlan)) return decision.order.shape()[0];
  return decision.offsets.as<int32_t>().back();
}

Pending ExpertExchange::start_dispatch(StepContext& step, const Decision& decision,
                                       ConstTensorView own, TensorView received) const {
  const std::vector<int64_t> send = counts_of(step, decision.send_rows, own.shape()[0]);
  const std::vector<int64_t> receive = counts_of(step, decision.receive_rows, own.shape()[0]);
  return step.mesh.along(Axis::kExpert).start_all_to_all(step.stream, own, send, received, receive);
}

void ExpertExchange::sort(StepContext& step, const Decision& decision, ConstTensorView received,
                          TensorView sorted) const {
  gather_rows(step.stream, {.y = sorted,
                            .x = received,
                            .source_of = decision.order.rows(0, sorted.shape()[0]),
                            .slots = 1});
}

void ExpertExchange::bring_back(StepContext& step, const Decision& decision, ConstTensorView sorted,
                                TensorView own) const {
  const Arena::Scope scratch(step.arena);
  const int64_t rows = sorted.shape()[0];
  const TensorView packed = step.arena.allocate(
      sorted.dtype(), sorted.shape().with(0, decision.order.shape()[0]), "moe.packed");
  scatter_rows(step.stream, {.y = packed, .x = sorted, .order = decision.order.rows(0, rows)});
  const std::vector<int64_t> send = counts_of(step, decision.receive_rows, own.shape()[0]);
  const std::vector<int64_t> receive = counts_of(step, decision.send_rows, own.shape()[0]);
  step.mesh.along(Axis::kExpert).all_to_all(step.stream, packed, send, own, receive);
}

}  // namespace tessera
