#include "runtime/control/budget_rules.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/support/compare.h"

namespace tessera {
namespace {

constexpr BudgetLimits kLimits{.least = 0.25, .most = 4};

double mean_of(const Budgets& budgets) {
  return std::accumulate(budgets.begin(), budgets.end(), 0.0) / static_cast<double>(budgets.size());
}

TEST(BudgetRules, AMeanIsReachedByOneFactorWithinTheLimits) {
  const Budgets budgets = with_mean({1, 2, 9, 0.01}, 1.5, kLimits);
  EXPECT_NEAR(mean_of(budgets), 1.5, 1e-9);
  EXPECT_NEAR(budgets[1], 2 * budgets[0], 1e-9);
  EXPECT_EQ(budgets[2], 4);
  EXPECT_EQ(budgets[3], 0.25);
  EXPECT_EQ(with_mean({1, 2}, 9, kLimits), (Budgets{4, 4}));
  EXPECT_EQ(with_mean({1, 2}, 0.1, kLimits), (Budgets{0.25, 0.25}));
  support::expect_error([] { with_mean({}, 1, kLimits); }, "with_mean: there are no budgets");
}

TEST(BudgetRules, KeptMassWithinTheToleranceLacksNothing) {
  const KeptMassRule rule{.target = 0.98, .rate = 2, .tolerance = 0.005};
  EXPECT_EQ(lacking(0.976, rule), 0);
  EXPECT_EQ(lacking(0.984, rule), 0);
  EXPECT_NEAR(lacking(0.9, rule), 0.08, 1e-12);
  EXPECT_NEAR(lacking(1, rule), -0.02, 1e-12);
}

TEST(BudgetRules, BudgetsFollowTheKeptMass) {
  const KeptMassRule rule{.target = 0.98, .rate = 2, .tolerance = 0.005};
  const std::vector<double> masses{0.98, 0.88, 1, 0.1};
  const Budgets budgets = follow_kept_mass({1, 1, 1, 2}, masses, rule, kLimits);
  EXPECT_EQ(budgets[0], 1);
  EXPECT_NEAR(budgets[1], std::exp(0.2), 1e-12);
  EXPECT_NEAR(budgets[2], std::exp(-0.04), 1e-12);
  EXPECT_EQ(budgets[3], 4) << "clipped";
  support::expect_error([&] { follow_kept_mass({1}, masses, rule, kLimits); },
                        "follow_kept_mass: 4 layers were measured, 1 have budgets");
}

TEST(BudgetRules, ThePriceKeepsTheMeanWhereItIsAllowedToBe) {
  const KeptMassRule rule{.target = 0.98, .rate = 0.5, .tolerance = 0};
  const PriceRule pricing{.cost = 1, .price_rate = 0.5};
  // Layers that need different budgets, and more than there is: R = b / (b + need).
  const std::vector<double> needs{0.1, 0.4, 1};
  Budgets budgets{1, 1, 1};
  double price = 0;
  for (int i = 0; i < 2000; ++i) {
    std::vector<double> masses;
    for (size_t l = 0; l < needs.size(); ++l)
      masses.push_back(budgets[l] / (budgets[l] + needs[l]));
    budgets = follow_price(budgets, masses, rule, pricing, kLimits, price);
  }
  EXPECT_NEAR(mean_of(budgets), 1, 1e-6);
  EXPECT_GT(price, 0);
  EXPECT_LT(budgets[0], budgets[1]);
  EXPECT_LT(budgets[1], budgets[2]);
  for (size_t l = 0; l < needs.size(); ++l) {
    EXPECT_NEAR(0.98 - budgets[l] / (budgets[l] + needs[l]), price * budgets[l], 1e-6);
  }
}

TEST(BudgetRules, ThePriceIsZeroWhereTheMeanIsBelowIt) {
  const KeptMassRule rule{.target = 0.8, .rate = 0.5, .tolerance = 0};
  Budgets budgets{1, 1};
  double price = 0.3;
  for (int i = 0; i < 2000; ++i) {
    const std::vector<double> masses{budgets[0] / (budgets[0] + 0.1),
                                     budgets[1] / (budgets[1] + 0.2)};
    budgets = follow_price(budgets, masses, rule, {.cost = 1, .price_rate = 0.5}, kLimits, price);
  }
  EXPECT_EQ(price, 0);
  EXPECT_NEAR(budgets[0], 0.4, 1e-6);  // b / (b + 0.1) = 0.8
  EXPECT_NEAR(budgets[1], 0.8, 1e-6);
}

TEST(BudgetRules, ProbesAreAntitheticAndKeepTheMean) {
  const Budgets budgets{1, 1, 1, 1, 1, 1, 1, 1};
  const ProbePair pair = antithetic(budgets, 0.2, 7, 3, kLimits);
  EXPECT_NEAR(mean_of(pair.plus), 1, 1e-9);
  EXPECT_NEAR(mean_of(pair.minus), 1, 1e-9);
  const auto [low, high] = std::minmax_element(pair.plus.begin(), pair.plus.end());
  EXPECT_NEAR(*high / *low, std::exp(0.4), 1e-9);
  for (size_t i = 0; i < budgets.size(); ++i) {
    EXPECT_EQ(pair.plus[i] > pair.plus[0], pair.minus[i] < pair.minus[0]);
  }
  EXPECT_EQ(antithetic(budgets, 0.2, 7, 3, kLimits).plus, pair.plus);
  EXPECT_NE(antithetic(budgets, 0.2, 7, 4, kLimits).plus, pair.plus);
  EXPECT_NE(antithetic(budgets, 0.2, 8, 3, kLimits).plus, pair.plus);
}

TEST(BudgetRules, AGainIsCertainBeyondTwoStandardErrors) {
  const std::vector<double> before{3, 2, 4, 3};
  // Differences 0.1, 0.3, 0.1, 0.3: mean 0.2, standard deviation 0.1155, error 0.0577.
  const PairedGain gain = paired_gain(before, std::vector<double>{2.9, 1.7, 3.9, 2.7});
  EXPECT_NEAR(gain.mean, 0.2, 1e-12);
  EXPECT_NEAR(gain.error, 0.1 / std::sqrt(3.0), 1e-12);
  EXPECT_TRUE(gain.certain());
  EXPECT_FALSE(paired_gain(before, std::vector<double>{2.6, 2.2, 3.6, 3.2}).certain());
  EXPECT_FALSE(paired_gain(before, before).certain());
  support::expect_error([&] { paired_gain(before, std::vector<double>{1}); },
                        "paired_gain: 4 losses before and 1 after");
}

}  // namespace
}  // namespace tessera
