#pragma once

#include <list>
#include <optional>
#include <string>
#include <vector>

#include "kernels/core/work_graph.h"
#include "model/sparsity_plan.h"
#include "model/token_plan.h"

namespace tessera {

class TrainConfig;

/// The forward and backward of a micro-batch, or a step of generation, as a graph of the GPU's, so
/// that it does not need a call of the host for each of its kernels
/// (docs/decisions/0020-step-as-a-graph.md).
///
/// A graph repeats one call of the work: the same kernels on the same addresses with the same
/// numbers. It is right as long as whatever changes from step to step is read on the device, from
/// places that stay; what cannot be is in the Key, and another key is another graph. Parameters,
/// gradients, sums and arena are one buffer each for the whole run, and the arena gives the same
/// addresses for the same calls from the same mark.
class StepGraph {
 public:
  /// All that kernels of a micro-batch get by value and that is not the same in the whole run.
  struct Key {
    bool gated = false;
    int64_t kept = 0;
    int64_t window = 0;
    float strength = 0;
    std::vector<int64_t> kept_of_layers = {};  ///< empty: all keep `kept`
    int64_t sequences = 0;
    int64_t tokens = 0;
    float router_share = 0;       ///< of the router's losses that a micro-batch has
    int64_t segments = 0;         ///< places for them, not how many there are
    const void* first = nullptr;  ///< of the plan's tensors in the arena
    const void* last = nullptr;

    friend bool operator==(const Key&, const Key&) = default;
  };
  static Key key_of(const TokenPlan& tokens, const SparsityPlan& sparsity);

  /// Graphs kept: of the sparse steps and of the dense ones between them.
  static constexpr size_t kMost = 2;

  /// `obstacle`: why there shall be no graphs; they are for GPUs only in any case. `log` gets to
  /// know that one runs, as phase forward. Both references must outlive this.
  StepGraph(Stream& stream, CollectiveLog& log, std::string obstacle);

  /// From here on a key that came in an earlier step has come before.
  void begin_step() { ++step_; }
  /// Does `work`, which gives the stream the micro-batch of `key` and calls between() wherever the
  /// host has something to do: as a graph when the key has come in a step before, so that whatever
  /// is made at first use is there, else at once. An error that a graph meets while it is put
  /// together is logged, and from then on all work is done at once.
  void run(const Key& key, const std::function<void()>& work);
  /// For `work`: calls `host` here, now or in every run of the graph.
  void between(std::function<void()> host);

  /// Graphs that were put together so far, and runs of them.
  int64_t made() const { return made_; }
  int64_t runs() const { return runs_; }

 private:
  struct Entry {
    Key key;
    std::unique_ptr<WorkGraph> graph;
  };
  WorkGraph* find(const Key& key);
  WorkGraph* make(const Key& key, const std::function<void()>& work);

  Stream& stream_;
  CollectiveLog& log_;
  std::string obstacle_;
  std::list<Entry> graphs_;  ///< the one that was used last comes first
  WorkGraph* under_way_ = nullptr;
  std::optional<Key> seen_;  ///< the last that was done at once
  int64_t seen_in_ = 0;      ///< step
  int64_t step_ = 0;
  int64_t made_ = 0;
  int64_t runs_ = 0;
};

/// Why micro-batches of this configuration cannot be graphs on this mesh, or shall not; empty when
/// they can.
std::string graph_obstacle(const TrainConfig& config, const ProcessMesh& mesh);

}  // namespace tessera
