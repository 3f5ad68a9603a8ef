#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/control/budget_rules.h"

namespace tessera {

/// A layer's kept blocks before and after.
struct BudgetChange {
  int64_t layer;
  int64_t before;
  int64_t after;

  friend bool operator==(const BudgetChange&, const BudgetChange&) = default;
};

/// Blocks that a layer with this budget keeps where the plan keeps `kept` of at most `most` blocks:
///   k_l = round(k b^rho), with rho = log(most / k) / log(most / k_final), 1 from k_final on,
/// so that in the transition all layers come down from `most` together; at least min(2, k), so that
/// there is a choice, and at most `most`.
int64_t kept_with_budget(double budget, int64_t kept, int64_t final_kept, int64_t most);

/// The budgets that a controller wants, and those in force, which follow with a hysteresis of one
/// block: noise in what is measured moves nothing.
class LayerBudgets {
 public:
  explicit LayerBudgets(Budgets start) : wanted_(start), in_force_(std::move(start)) {}
  LayerBudgets(Budgets wanted, Budgets in_force);

  const Budgets& wanted() const { return wanted_; }
  const Budgets& in_force() const { return in_force_; }
  void want(Budgets budgets) { wanted_ = std::move(budgets); }
  /// Puts in force every wanted budget that is at least one block from the one in force, where the
  /// configuration's budget is `kept` of at most `most` blocks. Returns the layers whose kept
  /// blocks change.
  std::vector<BudgetChange> follow(int64_t kept, int64_t most);
  /// Kept blocks of all layers in a plan; empty where every layer keeps as many as the plan.
  std::vector<int64_t> kept_blocks(int64_t kept, int64_t final_kept, int64_t most) const;

 private:
  Budgets wanted_;
  Budgets in_force_;
};

}  // namespace tessera
