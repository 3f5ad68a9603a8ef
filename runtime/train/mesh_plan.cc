#include "runtime/train/mesh_plan.h"

#include <array>
#include <set>

#include "model/head_projection.h"
#include "model/sparsity_budget.h"
#include "parallel/shard.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

/// One tensor rank of each kind, and the last.
std::set<int> tensor_kinds(const ModelConfig& model, int ranks) {
  std::set<std::array<int64_t, 3>> seen;
  std::set<int> kinds{ranks - 1};
  const int64_t global = global_groups(model);
  for (int rank = 0; rank < ranks; ++rank) {
    std::array<int64_t, 3> kind{Shard::split({model.vocabulary()}, 0, rank, ranks).length, 0, 0};
    if (global < model.kv_heads()) {
      const HeadShare share = split_heads(global, model.kv_heads() - global,
                                          model.heads() / model.kv_heads(), rank, ranks);
      kind[1] = share.heads;
      kind[2] = share.groups();
    }
    if (seen.insert(kind).second) kinds.insert(rank);
  }
  return kinds;
}

}  // namespace

std::vector<int> kinds_of_ranks(const TrainConfig& config) {
  const MeshConfig& mesh = config.mesh();
  const std::set<int> tensors = tensor_kinds(config.model(), mesh.tensor());
  std::set<int> ranks;
  for (const int batch : {0, mesh.data() * mesh.expert() - 1}) {
    for (const int sequence : {0, mesh.sequence() / 2, mesh.sequence() - 1}) {
      for (const int tensor : tensors) {
        ranks.insert((batch * mesh.sequence() + sequence) * mesh.tensor() + tensor);
      }
    }
  }
  return {ranks.begin(), ranks.end()};
}

RankPlan plan_largest_rank(const TrainConfig& config) {
  RankPlan largest;
  for (const int rank : kinds_of_ranks(config)) {
    RankPlan plan = plan_rank(config, rank);
    if (plan.memory.total() > largest.memory.total()) largest = std::move(plan);
  }
  return largest;
}

std::vector<StepTraffic> first_and_last(const std::vector<StepTraffic>& steps) {
  if (steps.size() < 2) return steps;
  return {steps.front(), steps.back()};
}

}  // namespace tessera
