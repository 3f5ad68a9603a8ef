#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tessera {

/// Budgets of layers, as multiples of the one that the model's configuration gives each.
using Budgets = std::vector<double>;

/// What a budget may be.
struct BudgetLimits {
  double least = 0.25;
  double most = 4;
};

/// Budgets clip(s b_l, least, most) with the s for which their mean is `mean`, to 2^-40 of it; the
/// nearest that there is where none is.
Budgets with_mean(Budgets budgets, double mean, const BudgetLimits& limits);

struct KeptMassRule {
  double target = 0.98;  ///< R*
  double rate = 2;       ///< eta
  double tolerance = 0.005;
};

/// How much kept mass a layer lacks, R* - R_l; 0 where it is at most the tolerance.
double lacking(double kept_mass, const KeptMassRule& rule);

/// log b_l += eta lacking(R_l), within the limits.
Budgets follow_kept_mass(Budgets budgets, std::span<const double> kept_mass,
                         const KeptMassRule& rule, const BudgetLimits& limits);

/// Augmented Lagrangian of "as little lacking mass as possible, with mean budgets of at most
/// `cost`".
struct PriceRule {
  double cost = 1;
  double price_rate = 0.5;
};
/// mu = max(0, mu + price_rate (mean b - cost)), which is returned in `price`; then
/// log b_l += eta (lacking(R_l) - mu b_l / cost), within the limits.
Budgets follow_price(Budgets budgets, std::span<const double> kept_mass, const KeptMassRule& rule,
                     const PriceRule& pricing, const BudgetLimits& limits, double& price);

/// Two probes around the budgets: b_l exp(spread d_l) and b_l exp(-spread d_l), with their mean.
/// d_l is 1 or -1, a function of (seed, round, layer).
struct ProbePair {
  Budgets plus;
  Budgets minus;
};
ProbePair antithetic(const Budgets& budgets, double spread, uint64_t seed, int64_t round,
                     const BudgetLimits& limits);

/// Of losses on the same batches: the mean of before - after, and its standard error.
struct PairedGain {
  double mean = 0;
  double error = 0;
  /// Beyond two standard errors.
  bool certain() const { return mean > 2 * error; }
};
PairedGain paired_gain(std::span<const double> before, std::span<const double> after);

}  // namespace tessera
