#include "runtime/train/gate_measure.h"

#include <gtest/gtest.h>

#include "kernels/gate_measure.h"
#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

using support::Tensor;
using F = GateFigures;

/// Figures of two layers with one group, with some set in the second.
Tensor figures_with(const std::vector<std::pair<int64_t, float>>& values) {
  Tensor figures(DType::kF32, {2, 1, F::kSize});
  for (const auto& [place, value] : values) {
    figures.as<float>()[static_cast<size_t>(F::kSize + place)] = value;
  }
  return figures;
}

TEST(GateMeasure, SumsBecomeMeans) {
  const Tensor figures = figures_with(
      {{F::kRows, 10},         {F::kKept, 9},       {F::kSink, 1},     {F::kWindow, 2},
       {F::kSelected, 6},      {F::kChoosing, 4},   {F::kEntropy, 2},  {F::kKl, 1},
       {F::kDropping, 5},      {F::kMargin, 10},    {F::kRamped, 1},   {F::kTiles, 8},
       {F::kUnion, 24},        {F::kExecuted, 300}, {F::kChosen, 200}, {F::kCandidatesAt + 3, 40},
       {F::kChosenAt + 3, 10}, {F::kBlocks, 12},    {F::kNever, 3},    {F::kHot, 2}});
  const std::vector<int64_t> kept{7, 9};
  const std::vector<GateMeasure> gates = gate_measures(figures, {}, kept, 5);
  ASSERT_EQ(gates.size(), 2u);
  const GateMeasure& gate = gates[1];
  EXPECT_EQ(gate.layer, 1);
  EXPECT_EQ(gate.group, 0);
  EXPECT_EQ(gate.kept_blocks, 9);
  EXPECT_EQ(gate.rows, 10);
  EXPECT_DOUBLE_EQ(gate.kept_mass, 0.9);
  EXPECT_DOUBLE_EQ(gate.sink_mass, 0.1);
  EXPECT_DOUBLE_EQ(gate.window_mass, 0.2);
  EXPECT_DOUBLE_EQ(gate.selected_mass, 0.6);
  EXPECT_NEAR(gate.sink_logit_mass, 0.1, 1e-12);
  EXPECT_EQ(gate.choosing_rows, 4);
  EXPECT_DOUBLE_EQ(gate.entropy, 0.5);
  EXPECT_DOUBLE_EQ(gate.kl, 0.25);
  EXPECT_EQ(gate.dropping_rows, 5);
  EXPECT_DOUBLE_EQ(gate.margin, 2);
  EXPECT_DOUBLE_EQ(gate.ramp_share, 0.2);
  EXPECT_DOUBLE_EQ(gate.union_blocks, 3);
  EXPECT_DOUBLE_EQ(gate.waste, 1.5);
  EXPECT_DOUBLE_EQ(gate.frequency[3], 0.25);
  EXPECT_DOUBLE_EQ(gate.frequency[2], -1);
  EXPECT_EQ(gate.blocks, 12);
  EXPECT_EQ(gate.never_selected, 3);
  EXPECT_EQ(gate.hot, 2);
  EXPECT_TRUE(gate.heat_map.empty());
}

TEST(GateMeasure, WhatHasNoRowsIsNothing) {
  const std::vector<GateMeasure> gates = gate_measures(figures_with({}), {}, {}, 5);
  EXPECT_EQ(gates[0].kept_blocks, 5);
  EXPECT_EQ(gates[0].rows, 0);
  EXPECT_EQ(gates[0].kept_mass, 1);
  EXPECT_EQ(gates[0].sink_logit_mass, 0);
  EXPECT_EQ(gates[0].entropy, 0);
  EXPECT_EQ(gates[0].waste, 0);
}

TEST(GateMeasure, RowsOfAMapAreMeans) {
  const Tensor maps(DType::kF32, {2, 1, kMapBins, kMapBins + 1});
  const auto at = [](int64_t row, int64_t column) {
    return static_cast<size_t>((kMapBins + row) * (kMapBins + 1) + column);
  };
  maps.as<float>()[at(5, 2)] = 3;
  maps.as<float>()[at(5, 4)] = 1;
  maps.as<float>()[at(5, kMapBins)] = 4;
  const std::vector<GateMeasure> gates = gate_measures(figures_with({}), maps, {}, 5);
  const std::vector<float>& map = gates[1].heat_map;
  ASSERT_EQ(map.size(), static_cast<size_t>(GateMeasure::kBins * GateMeasure::kBins));
  EXPECT_EQ(map[5 * 64 + 2], 0.75f);
  EXPECT_EQ(map[5 * 64 + 4], 0.25f);
  EXPECT_EQ(map[6 * 64 + 2], 0.0f);
  EXPECT_EQ(gates[0].heat_map[5 * 64 + 2], 0.0f);
}

}  // namespace
}  // namespace tessera
