#pragma once

#include <string>
#include <vector>

#include "runtime/train/planned_rank.h"

namespace tessera {

/// Ranks of one node, where nobody knows better.
inline constexpr int kNodeRanks = 8;

/// What a machine can do, as the cost model of mesh search sees it (docs/plan.md).
struct Hardware {
  const char* name;
  double memory;  ///< bytes of one rank
  double flops;   ///< per second of one rank, of matrix products in bf16, as measured in training
  double node_link;             ///< bytes per second that a rank sends to ranks of its node
  double network;               ///< bytes per second that a rank sends to other nodes
  int node_ranks = kNodeRanks;  ///< of one node
};

/// The share of the memory that a plan may fill. The rest is for the driver, the message library
/// and the kernels' own scratch.
inline constexpr double kUsableMemory = 0.9;

/// The hardware of that name. Throws Error(kUsage) with the known names.
const Hardware& find_hardware(const std::string& name);

/// One mesh and what it costs.
struct MeshChoice {
  MeshShape shape;
  RankPlan largest;  ///< the rank that needs most memory
  bool fits = false;
  double compute = 0;   ///< seconds of a step, mean over the run: the slowest rank's arithmetic
  double exchange = 0;  ///< likewise: bytes of each group / rate of its links

  double seconds() const { return compute + exchange; }
};

struct MeshSearch {
  std::vector<MeshChoice> best;  ///< those that fit first, the fastest first
  int feasible = 0;              ///< meshes that the model and the batch allow
};

/// The largest number of ranks, at most `most`, that search_meshes finds a mesh for; 0: there is
/// none.
int most_feasible_ranks(const TrainConfig& config, int most, const Hardware& hardware);

/// All meshes of `ranks` ranks that the resolved configuration `config` allows, whatever its own
/// mesh is, but for its sequence_order; tensor ranks share a node. Plans each of them and keeps the
/// `count` best ones. Throws Error(kUsage) with the nearest numbers of ranks when there is none.
MeshSearch search_meshes(const TrainConfig& config, int ranks, const Hardware& hardware,
                         size_t count);

}  // namespace tessera
