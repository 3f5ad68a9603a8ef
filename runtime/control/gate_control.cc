#include "runtime/control/gate_control.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>

#include "kernels/core/log.h"
#include "model/sparsity_budget.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/schedule.h"

namespace tessera {

namespace {

Budgets start_budgets(const TrainConfig& config) {
  const auto& budgets = config.gate_control().budgets();
  if (budgets.empty()) return Budgets(static_cast<size_t>(config.model().layers()), 1.0);
  return {budgets.begin(), budgets.end()};
}

BudgetLimits limits_of(const GateControlConfig& control) {
  return {.least = control.least(), .most = control.most()};
}

KeptMassRule rule_of(const GateControlConfig& control) {
  return {.target = control.target(), .rate = control.rate(), .tolerance = control.tolerance()};
}

double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::string digits(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.4f", value);
  return text.data();
}

int64_t length_of(const TrainConfig& config, const StepPlan& plan) {
  return plan.sequence_length > 0 ? plan.sequence_length : config.batch().sequence_length();
}

int64_t most_of(const TrainConfig& config, const StepPlan& plan) {
  return most_blocks(config.model(), length_of(config, plan));
}

int64_t final_kept_of(const TrainConfig& config, const StepPlan& plan) {
  return std::min(most_of(config, plan), kept_blocks(config.model(), length_of(config, plan)));
}

void apply(const TrainConfig& config, const LayerBudgets& budgets, StepPlan& plan) {
  const bool sparse = plan.stage == Stage::kTransition || plan.stage == Stage::kTuning;
  if (!plan.gated || !sparse) return;
  plan.kept_of_layers =
      budgets.kept_blocks(plan.kept_blocks, final_kept_of(config, plan), most_of(config, plan));
}

/// What is saved.
struct Saved {
  Budgets wanted;
  Budgets in_force;
  double price;
  int64_t round;
  std::vector<double> kept_masses;
  int64_t measures;
};

Saved parse(std::string_view state, int64_t layers) {
  Saved saved;
  try {
    const nlohmann::json json = nlohmann::json::parse(state);
    saved = {.wanted = json.at("wanted").get<Budgets>(),
             .in_force = json.at("in_force").get<Budgets>(),
             .price = json.at("price").get<double>(),
             .round = json.at("round").get<int64_t>(),
             .kept_masses = json.at("kept_masses").get<std::vector<double>>(),
             .measures = json.at("measures").get<int64_t>()};
  } catch (const nlohmann::json::exception& error) {
    throw Error(ExitCode::kBadData, concat("gate control: its state in the checkpoint is damaged: ",
                                           error.what(), "; resume from another checkpoint"));
  }
  const auto expected = static_cast<size_t>(layers);
  if (saved.wanted.size() != expected || saved.in_force.size() != expected ||
      saved.kept_masses.size() != expected) {
    throw Error(ExitCode::kUsage, concat("gate control: its state in the checkpoint is of ",
                                         saved.wanted.size(), " layers, the model has ", layers));
  }
  return saved;
}

}  // namespace

GateControl::GateControl(const TrainConfig& config, GateChangeLog log, Probe probe)
    : config_(config),
      log_(std::move(log)),
      probe_(std::move(probe)),
      budgets_(start_budgets(config)),
      total_(mean_of(budgets_.in_force())),
      kept_masses_(budgets_.in_force().size()) {
  const bool search = config.gate_control().method() == GateControlConfig::SEARCH;
  CHECK(!search || probe_, "gate control: a search needs a probe");
}

void GateControl::plan(StepPlan& plan) {
  apply(config_, budgets_, plan);
}

void GateControl::observe(const StepReport& report) {
  const GateControlConfig& control = config_.gate_control();
  if (report.plan.stage != Stage::kTuning || control.method() == GateControlConfig::NONE) return;
  const bool due = report.plan.step % control.every() == 0;
  if (control.method() == GateControlConfig::SEARCH) {
    if (due) search(report);
    return;
  }
  remember(report);
  if (due) change_by_kept_mass(report);
}

/// Layers have the mean of their groups.
void GateControl::remember(const StepReport& report) {
  if (report.gates.empty()) return;
  std::vector<double> sums(kept_masses_.size());
  std::vector<double> groups(kept_masses_.size());
  for (const GateMeasure& gate : report.gates) {
    const auto layer = static_cast<size_t>(gate.layer);
    sums.at(layer) += gate.kept_mass;
    groups.at(layer) += 1;
  }
  for (size_t layer = 0; layer < sums.size(); ++layer) {
    kept_masses_[layer] += sums[layer] / std::max(1.0, groups[layer]);
  }
  ++measures_;
}

std::optional<std::vector<double>> GateControl::measured() const {
  if (measures_ == 0) return std::nullopt;
  std::vector<double> means = kept_masses_;
  for (double& mean : means) mean /= static_cast<double>(measures_);
  return means;
}

void GateControl::change_by_kept_mass(const StepReport& report) {
  const std::optional<std::vector<double>> kept_mass = measured();
  if (!kept_mass) return;
  const GateControlConfig& control = config_.gate_control();
  const KeptMassRule rule = rule_of(control);
  const BudgetLimits limits = limits_of(control);
  const Budgets now = budgets_.wanted();
  Budgets wanted;
  if (control.method() == GateControlConfig::LAGRANGIAN) {
    wanted =
        follow_price(now, *kept_mass, rule,
                     {.cost = control.cost(), .price_rate = control.price_rate()}, limits, price_);
  } else {
    wanted = follow_kept_mass(now, *kept_mass, rule, limits);
    if (control.fixed_total()) wanted = with_mean(std::move(wanted), total_, limits);
  }
  budgets_.want(std::move(wanted));
  put_in_force(report, *kept_mass, [&](const BudgetChange& change) {
    const double mass = (*kept_mass)[static_cast<size_t>(change.layer)];
    std::string reason = concat("kept mass ", digits(mass), ", target ", digits(rule.target));
    if (control.method() == GateControlConfig::LAGRANGIAN) {
      reason += concat(", price ", digits(price_), " of a mean budget of ",
                       digits(mean_of(budgets_.wanted())));
    } else if (control.fixed_total()) {
      reason += concat(", mean of all layers ", digits(mean_of(*kept_mass)));
    }
    return reason;
  });
  std::fill(kept_masses_.begin(), kept_masses_.end(), 0);
  measures_ = 0;
}

void GateControl::put_in_force(const StepReport& report, std::span<const double> kept_mass,
                               const std::function<std::string(const BudgetChange&)>& reason) {
  for (const BudgetChange& change :
       budgets_.follow(report.plan.kept_blocks, most_of(config_, report.plan))) {
    const auto layer = static_cast<size_t>(change.layer);
    log_.add({.step = report.plan.step,
              .layer = change.layer,
              .before = change.before,
              .after = change.after,
              .budget = budgets_.in_force()[layer],
              .kept_mass = kept_mass.empty() ? -1 : kept_mass[layer],
              .reason = reason(change)});
  }
}

std::vector<double> GateControl::probe_losses(const Budgets& budgets, const StepPlan& plan) const {
  StepPlan probed = plan;
  probed.measure_gates = false;
  probed.heat_maps = false;
  apply(config_, LayerBudgets(budgets), probed);
  return probe_(probed);
}

// An antithetic pair around the budgets in force; the better one takes their place if it is
// certainly better on the same batches.
void GateControl::search(const StepReport& report) {
  const GateControlConfig& control = config_.gate_control();
  const Budgets& now = budgets_.in_force();
  const ProbePair pair =
      antithetic(now, control.spread(), config_.seed(), round_++, limits_of(control));
  const std::vector<double> of_dense = probe_(full_attention(config_, report.plan));
  const std::vector<double> of_now = probe_losses(now, report.plan);
  const std::vector<double> of_plus = probe_losses(pair.plus, report.plan);
  const std::vector<double> of_minus = probe_losses(pair.minus, report.plan);
  const bool plus = mean_of(of_plus) <= mean_of(of_minus);
  const Budgets& better = plus ? pair.plus : pair.minus;
  const PairedGain gain = paired_gain(of_now, plus ? of_plus : of_minus);
  const auto blocks_of = [&](const Budgets& budgets) {
    return LayerBudgets(budgets).kept_blocks(report.plan.kept_blocks,
                                             final_kept_of(config_, report.plan),
                                             most_of(config_, report.plan));
  };
  const bool taken = gain.certain() && blocks_of(better) != blocks_of(now);
  const PairedGain gap = paired_gain(of_now, of_dense);
  log_once(concat("step ", report.plan.step, ": search round ", round_, ": loss ",
                  digits(mean_of(of_now)), ", ", digits(gap.mean), " +- ", digits(gap.error),
                  " above full attention; probes ", digits(mean_of(of_plus)), " and ",
                  digits(mean_of(of_minus)), ", gain ", digits(gain.mean), " +- ",
                  digits(gain.error), taken ? ": taken" : ": left"));
  if (!taken) return;
  budgets_.want(better);
  put_in_force(report, {}, [&](const BudgetChange&) {
    return concat("search round ", round_, " gains ", digits(gain.mean), " +- ", digits(gain.error),
                  " nats");
  });
}

std::string GateControl::state() const {
  const nlohmann::ordered_json json{{"wanted", budgets_.wanted()},
                                    {"in_force", budgets_.in_force()},
                                    {"price", price_},
                                    {"round", round_},
                                    {"kept_masses", kept_masses_},
                                    {"measures", measures_}};
  return json.dump();
}

void GateControl::restore(std::string_view state) {
  Saved saved = parse(state, config_.model().layers());
  budgets_ = LayerBudgets(std::move(saved.wanted), std::move(saved.in_force));
  price_ = saved.price;
  round_ = saved.round;
  kept_masses_ = std::move(saved.kept_masses);
  measures_ = saved.measures;
}

void apply_saved_budgets(const TrainConfig& config, std::string_view state, StepPlan& plan) {
  LayerBudgets budgets(start_budgets(config));
  if (!state.empty()) {
    Saved saved = parse(state, config.model().layers());
    budgets = LayerBudgets(std::move(saved.wanted), std::move(saved.in_force));
  }
  apply(config, budgets, plan);
}

}  // namespace tessera
