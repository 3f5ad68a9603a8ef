#pragma once

#include <vector>

#include "runtime/train/memory_plan.h"
#include "runtime/train/step_traffic.h"

namespace tessera {

/// What one rank of a job will hold and exchange.
struct RankPlan {
  MemoryPlan memory;
  std::vector<StepTraffic> steps;  ///< the first step of each stage that is reached
};

/// Rank `rank` of the mesh of `config`, which is resolved, on a planning device: the first step of
/// every stage, without starting any rank. Exact in every byte but for the rows that go to experts,
/// which are counted as if the load were even, for documents: each sequence counts as one, and for
/// sampled rows of attention, of which each rank counts as many as there may be.
RankPlan plan_rank(const TrainConfig& config, int rank);

}  // namespace tessera
