#pragma once

#include <vector>

#include "runtime/train/planned_rank.h"

namespace tessera {

/// The ranks that stand for all ranks of the mesh of `config`, which is resolved, ascending. Of
/// each axis the first and the last coordinate, of the sequence axis also one between them, and of
/// the tensor axis one of each kind that has other numbers of heads, KV groups or entries of the
/// vocabulary. Along data and expert, ranks differ only in what they own of the optimizer's state,
/// by the alignment of its parts.
std::vector<int> kinds_of_ranks(const TrainConfig& config);

/// The plan of the one among kinds_of_ranks() that needs most memory; of equal ones the first.
RankPlan plan_largest_rank(const TrainConfig& config);

/// The dense stage, and the last one when it is another: what a run is planned by.
std::vector<StepTraffic> first_and_last(const std::vector<StepTraffic>& steps);

}  // namespace tessera
