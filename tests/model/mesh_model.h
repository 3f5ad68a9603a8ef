#pragma once

#include <vector>

#include "parallel/thread_communicator.h"
#include "tests/model/tiny_model.h"

namespace tessera::support {

/// The model of one rank of a mesh, in f32, with all that a micro-batch needs.
class MeshModel {
 public:
  MeshModel(const TrainConfig& config, Communicator& world, const MeshShape& shape,
            SequenceOrder order = SequenceOrder::kContiguous)
      : stream(bare_device(), 1),
        mesh(world, shape),
        model(config.model(), DType::kF32, Recompute::kNothing, store, place_in(mesh)),
        sums(bare_device(), model),
        planner_(mesh, model.planner_options(order)),
        arena_(bare_device(), int64_t{8} << 20) {
    store.allocate(bare_device());
    store.initialize(stream, config.seed());
  }

  Transformer::Run run(const SparsityPlan& plan) {
    sums.clear(stream);
    return {.stream = stream,
            .arena = arena_,
            .planner = planner_,
            .sparsity = plan,
            .router = {},
            .sums = sums.views()};
  }
  /// The first of this rank's sequences, when all batch ranks share `sequences`, and their number.
  int64_t sequences_of(int64_t sequences) const { return sequences / mesh.group(kBatch).size(); }
  int64_t first_of(int64_t sequences) const {
    return mesh.group(kBatch).rank() * sequences_of(sequences);
  }
  /// Those sequences; valid until the next call.
  Batch part_of(const Batch& batch) {
    const int64_t length = batch.tokens.shape()[0] / batch.sequences;
    const int64_t begin = first_of(batch.sequences) * length;
    const int64_t count = sequences_of(batch.sequences) * length;
    starts_.clear();
    for (const int32_t start : batch.starts.as<int32_t>()) {
      if (start < begin || start > begin + count) continue;
      starts_.push_back(start - static_cast<int32_t>(begin));
    }
    const auto segments = static_cast<int64_t>(starts_.size());
    return {.tokens = batch.tokens.rows(begin, count),
            .targets = batch.targets.rows(begin, count),
            .starts = {starts_.data(), DType::kI32, {segments}, Device{}},
            .sequences = count / length};
  }

  Stream stream;
  ProcessMesh mesh;
  ParameterStore store;
  Transformer model;
  StepSumsBuffer sums;

 private:
  TokenPlanner planner_;
  Arena arena_;
  std::vector<int32_t> starts_;
};

}  // namespace tessera::support
