#pragma once

#include <cstdint>
#include <vector>

namespace tessera {

/// Where a run is on its way from full to sparse attention (docs/dgsa.md, schedule).
enum class Stage : uint8_t {
  kDense,       ///< full attention; the gate rests
  kGateWarmup,  ///< full attention; the gate learns to predict it
  kTransition,  ///< kept blocks and window shrink geometrically, the gate gains strength
  kTuning,      ///< full sparsity
};
const char* name_of(Stage stage);

/// What one optimizer step will do. Built by the schedules, which are pure functions of the step;
/// hooks may change it. Identical on every rank.
struct StepPlan {
  int64_t step = 0;  ///< counts from 1
  double learning_rate = 0;
  Stage stage = Stage::kDense;
  bool gated = false;           ///< global groups attend to chosen blocks only
  int64_t kept_blocks = 0;      ///< k, blocks that a token may choose
  int64_t window = 0;           ///< W of local groups, tokens
  double gate_strength = 0;     ///< lambda, 0 to 1 - 2^-10
  double kl = 0;                ///< gamma of the gate's KL loss
  double entropy = 0;           ///< eta of its entropy penalty
  double z_loss = 0;            ///< zeta
  int64_t sequences = 0;        ///< of the step; 0: batch.sequences
  int64_t sequence_length = 0;  ///< tokens; 0: batch.sequence_length
  /// Shares of the sequences that curriculum.sources have, in their order; data.path has the rest.
  std::vector<double> weights = {};
  double pool = 1;  ///< share of the windows, the easiest first, from which samples are taken
  /// k of each layer, where they differ; empty: kept_blocks everywhere.
  std::vector<int64_t> kept_of_layers = {};
  bool measure_gates = false;  ///< the report has GateMeasures
  bool heat_maps = false;      ///< these have heat maps
};

}  // namespace tessera
