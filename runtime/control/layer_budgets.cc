#include "runtime/control/layer_budgets.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/error.h"

namespace tessera {

int64_t kept_with_budget(double budget, int64_t kept, int64_t final_kept, int64_t most) {
  if (kept >= most) return kept;
  const auto ratio_to = [&](int64_t blocks) {
    return std::log(static_cast<double>(most) / static_cast<double>(blocks));
  };
  const double rho = kept <= final_kept ? 1 : ratio_to(kept) / ratio_to(final_kept);
  const auto wanted =
      static_cast<int64_t>(std::llround(static_cast<double>(kept) * std::pow(budget, rho)));
  return std::clamp(wanted, std::min<int64_t>(2, kept), most);
}

LayerBudgets::LayerBudgets(Budgets wanted, Budgets in_force)
    : wanted_(std::move(wanted)), in_force_(std::move(in_force)) {
  CHECK(wanted_.size() == in_force_.size(), "layer budgets: ", wanted_.size(), " are wanted and ",
        in_force_.size(), " in force");
}

std::vector<BudgetChange> LayerBudgets::follow(int64_t kept, int64_t most) {
  std::vector<BudgetChange> changes;
  for (size_t i = 0; i < wanted_.size(); ++i) {
    const double blocks = static_cast<double>(kept) * std::abs(wanted_[i] - in_force_[i]);
    const int64_t before = kept_with_budget(in_force_[i], kept, kept, most);
    const int64_t after = kept_with_budget(wanted_[i], kept, kept, most);
    if (blocks < 1 || before == after) continue;
    in_force_[i] = wanted_[i];
    changes.push_back({static_cast<int64_t>(i), before, after});
  }
  return changes;
}

std::vector<int64_t> LayerBudgets::kept_blocks(int64_t kept, int64_t final_kept,
                                               int64_t most) const {
  std::vector<int64_t> all;
  bool same = true;
  for (const double budget : in_force_) {
    all.push_back(kept_with_budget(budget, kept, final_kept, most));
    same = same && all.back() == kept;
  }
  if (same) all.clear();
  return all;
}

}  // namespace tessera
