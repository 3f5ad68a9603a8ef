#include "runtime/control/budget_rules.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/core/error.h"
#include "kernels/core/random.h"

namespace tessera {

namespace {

double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double within(double budget, const BudgetLimits& limits) {
  return std::clamp(budget, limits.least, limits.most);
}

Budgets scaled(const Budgets& budgets, double factor, const BudgetLimits& limits) {
  Budgets all = budgets;
  for (double& budget : all) budget = within(factor * budget, limits);
  return all;
}

}  // namespace

Budgets with_mean(Budgets budgets, double mean, const BudgetLimits& limits) {
  CHECK(!budgets.empty(), "with_mean: there are no budgets");
  if (mean >= limits.most) return Budgets(budgets.size(), limits.most);
  if (mean <= limits.least) return Budgets(budgets.size(), limits.least);
  // With the smallest budget at the upper limit all are, and the other way round.
  const auto [smallest, largest] = std::minmax_element(budgets.begin(), budgets.end());
  double low = limits.least / *largest;
  double high = limits.most / *smallest;
  for (int halving = 0; halving < 64 && high - low > 0x1p-44 * high; ++halving) {
    const double middle = low + (high - low) / 2;
    (mean_of(scaled(budgets, middle, limits)) < mean ? low : high) = middle;
  }
  return scaled(budgets, low + (high - low) / 2, limits);
}

double lacking(double kept_mass, const KeptMassRule& rule) {
  const double lack = rule.target - kept_mass;
  return std::abs(lack) <= rule.tolerance ? 0 : lack;
}

Budgets follow_kept_mass(Budgets budgets, std::span<const double> kept_mass,
                         const KeptMassRule& rule, const BudgetLimits& limits) {
  CHECK(kept_mass.size() == budgets.size(), "follow_kept_mass: ", kept_mass.size(),
        " layers were measured, ", budgets.size(), " have budgets");
  for (size_t i = 0; i < budgets.size(); ++i) {
    budgets[i] = within(budgets[i] * std::exp(rule.rate * lacking(kept_mass[i], rule)), limits);
  }
  return budgets;
}

Budgets follow_price(Budgets budgets, std::span<const double> kept_mass, const KeptMassRule& rule,
                     const PriceRule& pricing, const BudgetLimits& limits, double& price) {
  CHECK(kept_mass.size() == budgets.size(), "follow_price: ", kept_mass.size(),
        " layers were measured, ", budgets.size(), " have budgets");
  price = std::max(0.0, price + pricing.price_rate * (mean_of(budgets) - pricing.cost));
  for (size_t i = 0; i < budgets.size(); ++i) {
    const double pull = lacking(kept_mass[i], rule) - price * budgets[i] / pricing.cost;
    budgets[i] = within(budgets[i] * std::exp(rule.rate * pull), limits);
  }
  return budgets;
}

ProbePair antithetic(const Budgets& budgets, double spread, uint64_t seed, int64_t round,
                     const BudgetLimits& limits) {
  ProbePair pair{budgets, budgets};
  for (size_t i = 0; i < budgets.size(); ++i) {
    const bool up = (philox(seed, static_cast<uint64_t>(round), i)[0] & 1) != 0;
    pair.plus[i] *= std::exp(up ? spread : -spread);
    pair.minus[i] *= std::exp(up ? -spread : spread);
  }
  const double mean = mean_of(budgets);
  return {with_mean(std::move(pair.plus), mean, limits),
          with_mean(std::move(pair.minus), mean, limits)};
}

PairedGain paired_gain(std::span<const double> before, std::span<const double> after) {
  CHECK(before.size() == after.size() && before.size() >= 2, "paired_gain: ", before.size(),
        " losses before and ", after.size(), " after, expected as many, at least 2");
  std::vector<double> gains;
  for (size_t i = 0; i < before.size(); ++i) gains.push_back(before[i] - after[i]);
  PairedGain gain{.mean = mean_of(gains)};
  double squares = 0;
  for (const double x : gains) squares += (x - gain.mean) * (x - gain.mean);
  const auto count = static_cast<double>(gains.size());
  gain.error = std::sqrt(squares / (count - 1) / count);
  return gain;
}

}  // namespace tessera
