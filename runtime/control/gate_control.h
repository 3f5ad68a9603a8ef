#pragma once

#include <functional>
#include <optional>

#include "runtime/control/gate_change_log.h"
#include "runtime/control/layer_budgets.h"
#include "runtime/train/hook.h"

namespace tessera {

class TrainConfig;

/// Chooses how many blocks each layer keeps (GateControlConfig, docs/gate_control.md). Changes
/// budgets in the tuning stage only, where what it measures does not move by itself; they hold in
/// the transition too. All of it follows from reports, which are the same on every rank.
class GateControl final : public Hook {
 public:
  /// Losses per token of the probe batches under a plan, the same batches until the next step.
  /// Collective.
  using Probe = std::function<std::vector<double>(const StepPlan&)>;

  /// `config` is resolved and must outlive this. `probe` is needed for SEARCH alone.
  GateControl(const TrainConfig& config, GateChangeLog log, Probe probe = {});

  std::string name() const override { return "gate_control"; }
  void plan(StepPlan& plan) override;
  void observe(const StepReport& report) override;
  /// JSON, with every digit. restore() throws Error(kBadData) on other text, and Error(kUsage) when
  /// it is of a model with other layers.
  std::string state() const override;
  void restore(std::string_view state) override;

  const LayerBudgets& budgets() const { return budgets_; }

 private:
  void remember(const StepReport& report);
  std::optional<std::vector<double>> measured() const;
  void change_by_kept_mass(const StepReport& report);
  void search(const StepReport& report);
  void put_in_force(const StepReport& report, std::span<const double> kept_mass,
                    const std::function<std::string(const BudgetChange&)>& reason);
  std::vector<double> probe_losses(const Budgets& budgets, const StepPlan& plan) const;

  const TrainConfig& config_;
  GateChangeLog log_;
  Probe probe_;
  LayerBudgets budgets_;
  double total_ = 1;  ///< mean of the budgets at the start
  double price_ = 0;
  int64_t round_ = 0;                ///< of the search
  std::vector<double> kept_masses_;  ///< sums over measures since the last change, by layer
  int64_t measures_ = 0;
};

/// Sets the kept blocks of each layer in a plan of a run whose checkpoint holds `state` of its
/// GateControl; empty: the budgets of the configuration.
void apply_saved_budgets(const TrainConfig& config, std::string_view state, StepPlan& plan);

/// Where that state is in a checkpoint.
inline constexpr const char* kGateControlBlob = "hook/gate_control";

}  // namespace tessera
