#include "runtime/train/step_graph.h"

#include <algorithm>
#include <utility>

#include "kernels/core/log.h"
#include "runtime/config/train.pb.h"

namespace tessera {

StepGraph::Key StepGraph::key_of(const TokenPlan& tokens, const SparsityPlan& sparsity) {
  return {.gated = sparsity.gated,
          .kept = sparsity.kept,
          .window = sparsity.window,
          .strength = sparsity.strength,
          .sequences = tokens.sequences,
          .tokens = tokens.all(),
          .segments = tokens.share.starts.elements(),
          .first = tokens.ids.data(),
          .last = tokens.scope_starts.data()};
}

StepGraph::StepGraph(Stream& stream, CollectiveLog& log, std::string obstacle)
    : stream_(stream), log_(log), obstacle_(std::move(obstacle)) {
  if (stream.on(DeviceKind::kGpu) && !obstacle_.empty()) {
    log_once(concat("steps start their kernels one by one: ", obstacle_));
  }
}

void StepGraph::run(const Key& key, const std::function<void()>& work) {
  if (!stream_.on(DeviceKind::kGpu) || !obstacle_.empty()) return work();
  WorkGraph* graph = find(key);
  if (graph == nullptr && seen_ == key && seen_in_ < step_) graph = make(key, work);
  if (graph == nullptr) {
    if (seen_ != key) seen_in_ = step_;
    seen_ = key;
    return work();
  }
  log_.set_phase(Phase::kForward);
  graph->run();
  ++runs_;
}

WorkGraph* StepGraph::find(const Key& key) {
  const auto found =
      std::find_if(graphs_.begin(), graphs_.end(), [&](const Entry& e) { return e.key == key; });
  if (found == graphs_.end()) return nullptr;
  graphs_.splice(graphs_.begin(), graphs_, found);
  return graphs_.front().graph.get();
}

WorkGraph* StepGraph::make(const Key& key, const std::function<void()>& work) {
  // One that is still running on the GPU may be given up: CUDA keeps it until it has ended.
  while (graphs_.size() >= kMost) graphs_.pop_back();
  try {
    graphs_.push_front(
        {.key = key, .graph = std::make_unique<WorkGraph>(stream_, [&](WorkGraph& graph) {
                       under_way_ = &graph;
                       work();
                     })});
    under_way_ = nullptr;
  } catch (const std::exception& e) {
    under_way_ = nullptr;
    obstacle_ = e.what();
    log_line(
        concat("steps start their kernels one by one from here on, because putting them "
               "together as a graph failed: ",
               obstacle_, "; runtime.graphs: false leaves out the attempt"));
    return nullptr;
  }
  const WorkGraph& graph = *graphs_.front().graph;
  if (made_++ == 0) {
    log_once(concat("the same work is a graph from here on: ", graph.pieces(),
                    " kernels and copies in ", graph.calls(), " calls"));
  }
  return graphs_.front().graph.get();
}

void StepGraph::between(std::function<void()> host) {
  if (under_way_ != nullptr) return under_way_->between(std::move(host));
  host();
}

std::string graph_obstacle(const TrainConfig& config, const ProcessMesh& mesh) {
  if (!config.runtime().graphs()) return "runtime.graphs is false";
  if (mesh.group(kContext).size() > 1) {
    return "ranks exchange tokens within a layer (mesh.sequence x mesh.tensor is above 1)";
  }
  if (config.model().attention().selection() == AttentionConfig::RANDOM) {
    return "the host makes random numbers in each layer (model.attention.selection is RANDOM)";
  }
  if (!config.model().has_moe()) return {};
  const MoeConfig& moe = config.model().moe();
  if (mesh.size(Axis::kExpert) > 1) {
    return "the host has to know what experts of other ranks get (mesh.expert is above 1)";
  }
  if (moe.capacity_factor() > 0) {
    return "the host has to know what experts drop (model.moe.capacity_factor is above 0)";
  }
  if (moe.balance_scope() == MoeConfig::GLOBAL_BATCH && mesh.world().size() > 1) {
    return "ranks exchange counts within a layer (model.moe.balance_scope is GLOBAL_BATCH)";
  }
  return {};
}

}  // namespace tessera
