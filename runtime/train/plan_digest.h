#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "runtime/train/step_plan.h"

namespace tessera {

/// All that a plan says, in 48 bits: equal plans have equal digests.
uint64_t digest_of(const StepPlan& plan);

/// What ranks add to a sum that they form anyway, to learn whether they plan the same step: whether
/// planning failed here, and of each of the digest's three parts d of 16 bits d and d^2. For n
/// ranks n sum(d^2) = sum(d)^2 only if all d are equal, and below 2^21 ranks doubles hold these
/// exactly.
inline constexpr size_t kPlanRiders = 7;
using PlanRiders = std::array<double, kPlanRiders>;
PlanRiders plan_riders(const StepPlan& plan, bool failed);

enum class Agreement : uint8_t { kSame, kDiffers, kFailed };
/// The same on every rank: what the riders of `ranks` ranks add up to says.
Agreement agreement(const PlanRiders& sums, int ranks);

}  // namespace tessera
