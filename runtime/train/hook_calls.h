#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "parallel/agreement.h"
#include "runtime/train/hook.h"
#include "runtime/train/plan_digest.h"

namespace tessera {

class TrainConfig;

/// Calls the hooks of a run, and stops it when one of them fails or plans something else than on
/// other ranks: on all ranks, with the hook's name. What happens on one rank alone travels in the
/// next step's first message, so that no rank waits for one that has left.
class HookCalls {
 public:
  /// `hooks` may grow until the first call. References must outlive this.
  HookCalls(const std::vector<std::unique_ptr<Hook>>& hooks, const TrainConfig& config,
            Communicator& world)
      : hooks_(hooks), config_(config), world_(world) {}

  /// Lets all hooks change `plan`, in order. A hook may change the learning rate, the coefficients
  /// and sizes of sparsity, weights and pool, within what memory was planned for; nothing else.
  void plan(StepPlan& plan);
  /// What this rank adds to the step's first message, and what the sums mean: throws Error when a
  /// hook failed on some rank, or plans differ. Collective where it throws, on every rank alike.
  PlanRiders riders() const { return riders_; }
  void check(const PlanRiders& sums);
  /// Shows them all what happened.
  void observe(const StepReport& report);
  /// After the last step: as check(). Collective.
  void finish();

 private:
  struct Planned {
    std::string hook;
    uint64_t digest;  ///< of the plan that it leaves
  };
  void fail(const Hook& hook, const std::string& doing, int64_t step, const std::string& why);
  [[noreturn]] void stop(const std::optional<Failure>& failure) const;
  std::optional<Failure> find_difference() const;

  const std::vector<std::unique_ptr<Hook>>& hooks_;
  const TrainConfig& config_;
  Communicator& world_;
  int64_t step_ = 0;
  std::vector<Planned> planned_;
  PlanRiders riders_{};
  std::optional<Failure> failure_;  ///< the first, of this rank
};

}  // namespace tessera
