#pragma once

#include <vector>

#include "kernels/core/arena.h"
#include "model/step_context.h"

namespace tessera {

/// Sends rows of tokens to the ranks that have their experts, and brings results back. The experts
/// are shared out along the expert axis: rank x has experts [x, x + 1) * experts / ranks.
///
/// A rank's own rows are sorted by (expert, token); so those for one rank are together. They arrive
/// by (source rank, expert, token), and are sorted stably by (expert, source rank, token). Nothing
/// depends on timing. One Decision serves all transfers of a layer: dispatch and return of forward,
/// and of backward; only the first exchanges counts.
class ExpertExchange {
 public:
  /// `capacity_factor`: see most_pairs().
  ExpertExchange(int64_t experts, int64_t experts_per_token, double capacity_factor, int ranks);

  /// Who sends how much to whom: for the kernels, and for the host, which starts the exchanges.
  struct Decision {
    TensorView counts;                  ///< [ranks, local experts], i32: rows from each rank
    TensorView order;                   ///< [capacity], i32: received row of each sorted row
    TensorView offsets;                 ///< [local experts + 1], i32: sorted rows of each expert
    std::vector<int64_t> send_rows;     ///< to each rank
    std::vector<int64_t> receive_rows;  ///< from each rank
    int64_t rows = 0;                   ///< that arrive here; on a plan, the capacity
  };

  bool alone() const { return ranks_ == 1; }
  int64_t local_experts() const { return experts_ / ranks_; }
  /// Pairs of a rank with `tokens` that one expert takes: capacity_factor times an even load of
  /// tokens k / experts, rounded up. 0, without a factor: all, no token is ever dropped.
  int64_t pairs_per_expert(int64_t tokens) const;
  /// Pairs that a rank with `tokens` sends at most.
  int64_t most_pairs(int64_t tokens) const;
  /// Rows that may arrive when each rank has `tokens`.
  int64_t capacity(int64_t tokens) const;
  Decision allocate(StepContext& step, int64_t tokens) const;

  /// From `offsets` [experts + 1], i32, of this rank's sorted rows, `pairs` on a plan. Collective.
  /// Returns how many rows this rank has. The host waits for the stream: nobody can receive rows
  /// without knowing how many (docs/decisions/0016).
  int64_t decide(StepContext& step, ConstTensorView offsets, int64_t pairs,
                 Decision& decision) const;

  /// Own sorted rows [pairs, dim] to their experts; received: [capacity, dim], by source.
  [[nodiscard]] Pending start_dispatch(StepContext& step, const Decision& decision,
                                       ConstTensorView own, TensorView received) const;
  /// sorted [rows, dim] from received [capacity, dim].
  void sort(StepContext& step, const Decision& decision, ConstTensorView received,
            TensorView sorted) const;
  /// own [pairs, dim] = what became of the rows that were dispatched, from sorted [rows, dim].
  void bring_back(StepContext& step, const Decision& decision, ConstTensorView sorted,
                  TensorView own) const;

 private:
  int64_t count_rows(StepContext& step, ConstTensorView offsets, ConstTensorView received,
                     Decision& decision) const;

  int64_t experts_;
  int64_t experts_per_token_;
  double capacity_factor_;
  int ranks_;
};

}  // namespace tessera
