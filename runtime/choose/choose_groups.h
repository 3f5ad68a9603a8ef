#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "runtime/choose/group_order.h"
#include "runtime/choose/probe.h"

namespace tessera {

/// What `tessera checkpoint choose` is asked for.
struct ChooseOptions {
  std::filesystem::path checkpoint = {};  ///< or a run directory
  std::filesystem::path output = {};      ///< run directory that is made
  std::string precision = "checkpoint";   ///< as LoadOptions::precision
  int64_t global_groups = 0;              ///< of each layer from now on; 0: as in the run
  ProbeOptions probe = {};
  int64_t steps = 200;
  double rate = 0.05;  ///< of alpha in one step
  /// Told after each step, with the loss of its batch; optional.
  std::function<void(int64_t step, double loss)> progress = {};
};

/// What was found for one layer. Groups have the numbers of their old places.
struct LayerChoice {
  std::vector<double> alpha;  ///< of each group
  GroupOrder order;           ///< the group that is now at each place
};

struct ChooseReport {
  int64_t step = 0;                  ///< of the checkpoint
  int64_t global_groups = 0;         ///< of each layer
  int64_t global_groups_before = 0;  ///< in the run that made it
  int64_t window = 0;                ///< of local groups, tokens
  int64_t length = 0;                ///< of the probe's sequences
  std::vector<LayerChoice> layers = {};
  ProbeLoss all = {};     ///< every group global, as in the dense model
  ProbeLoss before = {};  ///< the groups that were first global, the others in their windows
  ProbeLoss after = {};   ///< the same with the chosen ones
  std::filesystem::path checkpoint = {};
  int64_t bytes = 0;  ///< of it
};

/// Learns which KV groups of each layer of a dense model ought to see everything, and writes its
/// checkpoint again, as of the same step, with these first: a run goes on from it as from the old
/// one, and computes the same but for the order of sums. With another number of global groups its
/// configuration needs that as well, and gates begin that were not there. The changes are told in
/// OUTPUT/gate_changes.jsonl and OUTPUT/log.txt. For one rank; a function of checkpoint, data and
/// options alone. Throws Error: kUsage when there is nothing to choose, the groups have their roles
/// already, or OUTPUT exists; kBadData for what files hold; kTryAgain for trouble of the storage.
ChooseReport choose_groups(Stream& stream, const ChooseOptions& options);

/// A layer in which the choice leaves out what is nearly as good: a group that is not chosen has a
/// quarter of an alpha or more.
struct SharedLayer {
  int64_t layer;
  double chosen;    ///< the least alpha of those that are global
  double left_out;  ///< the largest of the others
};
/// Those layers, which one more global group would serve better.
std::vector<SharedLayer> shared_layers(const ChooseReport& report);

/// As one JSON object.
std::string to_json(const ChooseReport& report);

}  // namespace tessera
