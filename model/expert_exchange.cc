#include "model/expert_exchange.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/copy.h"
#include "kernels/permute_tokens.h"

namespace tessera {

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
          .order = arena.allocate(DType::kI32, {capacity(tokens)}, "moe.order"),
          .offsets = arena.allocate(DType::kI32, {local_experts() + 1}, "moe.local_offsets"),
          .send_rows = {},
          .receive_rows = {},
          .rows = 0};
}

// A rank gets from each other one the offsets of its own experts there, the end of the last one
// too. The host then makes counts of them.
int64_t ExpertExchange::decide(StepContext& step, ConstTensorView offsets, int64_t pairs,
                               Decision& decision) const {
  const Arena::Scope scratch(step.arena);
  const int64_t local = local_experts();
  const int64_t bounds = local + 1;
  const TensorView received =
      step.arena.allocate(DType::kI32, {ranks_ * bounds}, "moe.offsets_received");
  std::vector<RowTransfer> sends;
  std::vector<RowTransfer> receives;
  for (int r = 0; r < ranks_; ++r) {
    sends.push_back({r, r * local, bounds});
    receives.push_back({r, r * bounds, bounds});
  }
  step.mesh.along(Axis::kExpert).exchange_rows(step.stream, offsets, sends, received, receives);
  if (step.stream.on(DeviceKind::kPlan)) {
    // Nobody knows the counts: as if the load were even.
    decision.send_rows.assign(static_cast<size_t>(ranks_), pairs / ranks_);
    decision.receive_rows = decision.send_rows;
    decision.rows = decision.order.shape()[0];
  } else {
    pairs = count_rows(step, offsets, received, decision);
  }
  merge_expert_rows(
      step.stream,
      {.order = decision.order, .offsets = decision.offsets, .counts = decision.counts});
  return pairs;
}

/// Fills what the host needs to know, and decision.counts, from own and received offsets.
int64_t ExpertExchange::count_rows(StepContext& step, ConstTensorView offsets,
                                   ConstTensorView received, Decision& decision) const {
  const auto local = static_cast<size_t>(local_experts());
  std::vector<int32_t> own(static_cast<size_t>(experts_ + 1));
  std::vector<int32_t> theirs(static_cast<size_t>(received.elements()));
  copy(step.stream, offsets, host_view(own));
  copy(step.stream, received, host_view(theirs));
  step.mesh.world().synchronize(step.stream);
  std::vector<int32_t> counts;
  decision.send_rows.clear();
  decision.receive_rows.clear();
  decision.rows = 0;
  for (size_t r = 0; r < static_cast<size_t>(ranks_); ++r) {
    decision.send_rows.push_back(own[(r + 1) * local] - own[r * local]);
    const int32_t* const begin = &theirs[r * (local + 1)];
    for (size_t e = 0; e < local; ++e) counts.push_back(begin[e + 1] - begin[e]);
    decision.receive_rows.push_back(begin[local] - begin[0]);
    decision.rows += decision.receive_rows.back();
  }
  copy(step.stream, host_view(counts).reshape(decision.counts.shape()), decision.counts);
  return own.back();
}

Pending ExpertExchange::start_dispatch(StepContext& step, const Decision& decision,
                                       ConstTensorView own, TensorView received) const {
  return step.mesh.along(Axis::kExpert)
      .start_all_to_all(step.stream, own, decision.send_rows, received, decision.receive_rows);
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
  step.mesh.along(Axis::kExpert)
      .all_to_all(step.stream, packed, decision.receive_rows, own, decision.send_rows);
}

}  // namespace tessera
