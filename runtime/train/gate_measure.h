#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// How one global KV group of one layer attended in a step that measures, over all ranks
/// (docs/gate_control.md has the formulas). Sampled rows: `MonitorConfig.sample_rows` tokens,
/// evenly over the positions of the sequences; what is said of blocks chosen counts all tokens.
struct GateMeasure {
  static constexpr int64_t kBins = 64;       ///< of the heat map, along either side
  static constexpr int64_t kDistances = 20;  ///< bin b: 2^b <= blocks to the own one < 2^(b + 1)

  int64_t layer = 0;        ///< from 0, over all layers of the model
  int64_t group = 0;        ///< KV group of the layer
  int64_t kept_blocks = 0;  ///< k of this layer in this step
  int64_t rows = 0;         ///< sampled rows

  /// Means over sampled rows and heads. kept_mass: share of full attention's mass that lies on what
  /// the row attends to, R. The others are shares of what it does attend with, 1 together.
  double kept_mass = 1;
  double sink_mass = 0;        ///< first blocks
  double window_mass = 0;      ///< own block and those before
  double selected_mass = 0;    ///< chosen blocks; while the gate rests, all other blocks
  double sink_logit_mass = 0;  ///< the learned sink logit

  /// Means over those sampled rows that chose at least two blocks; 0 without any.
  int64_t choosing_rows = 0;
  double entropy = 0;  ///< H(p) of the gate's softmax over the chosen blocks, nats
  double kl = 0;       ///< KL(t || p), t: where attention goes among them, nats
  /// Means over those that dropped a block; 0 without any.
  int64_t dropping_rows = 0;
  double margin = 0;      ///< score of the last chosen block less that of the runner-up, nats
  double ramp_share = 0;  ///< of the chosen blocks, those whose gate is not fully open

  double union_blocks = 0;  ///< mean number of blocks that a tile of 16 tokens chose together
  double waste = 0;  ///< phi = sum union x tokens of the tile / sum chosen; 0: nothing chosen
  /// Share of the candidates at each distance that were chosen, of tokens that dropped a block;
  /// negative where there was no candidate.
  std::array<double, kDistances> frequency{};

  /// Blocks that at least 64 tokens could choose or drop; of these, those that no token chose, and
  /// those that at least half of them chose.
  int64_t blocks = 0;
  int64_t never_selected = 0;
  int64_t hot = 0;

  /// [query bin, key bin] of positions in the sequence: share of attention's mass, mean over heads
  /// and the sampled rows of the query bin. Rows of bins without a sampled row are 0. Empty in
  /// steps that measure no map.
  std::vector<float> heat_map;
};

/// What figures [layers, groups, GateFigures::kSize] and maps [layers, groups, 64, 65] (or empty)
/// mean, both f32, summed over all ranks and in host memory. By layer, and by group within it.
std::vector<GateMeasure> gate_measures(ConstTensorView figures, ConstTensorView maps,
                                       std::span<const int64_t> kept_of_layers, int64_t kept);

}  // namespace tessera
