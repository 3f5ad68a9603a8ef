#pragma once

#include "model/transformer.h"
#include "parallel/self_communicator.h"

namespace tessera {

/// The mesh and the planner of a rank that is alone: for inference and for tools.
class SingleRank {
 public:
  explicit SingleRank(const Transformer& model)
      : mesh_(world_, {}), planner_(mesh_, model.planner_options()) {}
  SingleRank(const SingleRank&) = delete;
  SingleRank& operator=(const SingleRank&) = delete;

  /// What a micro-batch needs, with this rank's planner.
  Transformer::Run run(Stream& stream, Arena& arena, const SparsityPlan& sparsity, StepSums& sums) {
    return {.stream = stream,
            .arena = arena,
            .planner = planner_,
            .sparsity = sparsity,
            .router = {},
            .sums = sums};
  }

  CollectiveLog& log() const { return world_.log(); }

 private:
  SelfCommunicator world_;
  ProcessMesh mesh_;
  TokenPlanner planner_;
};

}  // namespace tessera
