#include "runtime/train/gate_measure.h"

#include <cmath>

#include "kernels/gate_measure.h"

namespace tessera {

namespace {

static_assert(GateMeasure::kBins == kMapBins);
static_assert(GateMeasure::kDistances == GateFigures::kDistances);

/// The figures of one group.
class Reader {
 public:
  explicit Reader(std::span<const float> figures) : figures_(figures) {}

  double operator[](int64_t place) const {
    return static_cast<double>(figures_[static_cast<size_t>(place)]);
  }
  int64_t count(int64_t place) const { return std::llround((*this)[place]); }
  /// A sum over `rows` as a mean; `otherwise` without any.
  double mean(int64_t place, int64_t rows, double otherwise = 0) const {
    return (*this)[rows] > 0 ? (*this)[place] / (*this)[rows] : otherwise;
  }

 private:
  std::span<const float> figures_;
};

GateMeasure measure_of(const Reader& x) {
  using F = GateFigures;
  GateMeasure gate;
  gate.rows = x.count(F::kRows);
  gate.kept_mass = x.mean(F::kKept, F::kRows, 1);
  gate.sink_mass = x.mean(F::kSink, F::kRows);
  gate.window_mass = x.mean(F::kWindow, F::kRows);
  gate.selected_mass = x.mean(F::kSelected, F::kRows);
  if (gate.rows > 0) {
    gate.sink_logit_mass =
        std::max(0.0, 1 - gate.sink_mass - gate.window_mass - gate.selected_mass);
  }
  gate.choosing_rows = x.count(F::kChoosing);
  gate.entropy = x.mean(F::kEntropy, F::kChoosing);
  gate.kl = x.mean(F::kKl, F::kChoosing);
  gate.dropping_rows = x.count(F::kDropping);
  gate.margin = x.mean(F::kMargin, F::kDropping);
  gate.ramp_share = x.mean(F::kRamped, F::kDropping);
  gate.union_blocks = x.mean(F::kUnion, F::kTiles);
  gate.waste = x.mean(F::kExecuted, F::kChosen);
  for (size_t bin = 0; bin < gate.frequency.size(); ++bin) {
    const auto at = static_cast<int64_t>(bin);
    gate.frequency[bin] = x.mean(F::kChosenAt + at, F::kCandidatesAt + at, -1);
  }
  gate.blocks = x.count(F::kBlocks);
  gate.never_selected = x.count(F::kNever);
  gate.hot = x.count(F::kHot);
  return gate;
}

/// `sums` [64, 65]: the last column has how many rows each was summed over.
std::vector<float> heat_map_of(std::span<const float> sums) {
  std::vector<float> map;
  for (size_t row = 0; row < kMapBins; ++row) {
    const std::span<const float> of_row = sums.subspan(row * (kMapBins + 1), kMapBins + 1);
    const float rows = std::max(1.0f, of_row.back());
    for (const float mass : of_row.first(kMapBins)) map.push_back(mass / rows);
  }
  return map;
}

}  // namespace

std::vector<GateMeasure> gate_measures(ConstTensorView figures, ConstTensorView maps,
                                       std::span<const int64_t> kept_of_layers, int64_t kept) {
  std::vector<GateMeasure> gates;
  const int64_t groups = figures.shape()[1];
  constexpr auto kFigures = static_cast<size_t>(GateFigures::kSize);
  constexpr auto kMap = static_cast<size_t>(kMapBins * (kMapBins + 1));
  for (int64_t i = 0; i < figures.shape()[0] * groups; ++i) {
    const auto at = static_cast<size_t>(i);
    GateMeasure gate = measure_of(Reader(figures.as<float>().subspan(at * kFigures, kFigures)));
    gate.layer = i / groups;
    gate.group = i % groups;
    gate.kept_blocks =
        kept_of_layers.empty() ? kept : kept_of_layers[static_cast<size_t>(gate.layer)];
    if (!maps.empty()) gate.heat_map = heat_map_of(maps.as<float>().subspan(at * kMap, kMap));
    gates.push_back(std::move(gate));
  }
  return gates;
}

}  // namespace tessera
