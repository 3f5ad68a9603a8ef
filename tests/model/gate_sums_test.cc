#include "model/gate_sums.h"

#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "kernels/core/copy.h"
#include "kernels/gate_measure.h"
#include "tests/model/mesh_model.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

int64_t sequences() {
  return support::takes_less() ? 1 : 4;
}
int64_t length() {
  return support::takes_less() ? 80 : 96;
}

struct Found {
  std::vector<float> figures;
  std::vector<float> maps;

  double figure(int64_t layer, int64_t place) const {
    return static_cast<double>(figures[static_cast<size_t>(layer * GateFigures::kSize + place)]);
  }
};

TrainConfig config_of() {
  return support::tiny_config({concat("batch.sequences=", sequences()), "batch.micro_sequences=0",
                               concat("batch.sequence_length=", length()),
                               "model.moe=", "model.attention.gate_keys=1"});
}

/// Every fifth token of a batch that a rank has.
std::vector<int32_t> samples_of(const Batch& part, int64_t first_token) {
  std::vector<int32_t> samples;
  for (int64_t i = 0; i < part.tokens.shape()[0]; ++i) {
    if ((first_token + i) % 5 == 0) samples.push_back(static_cast<int32_t>(i));
  }
  return samples;
}

/// The sums of a step on a mesh.
Found measure(const MeshShape& shape, const SparsityPlan& plan, std::span<const int64_t> kept,
              SequenceOrder order = SequenceOrder::kContiguous) {
  const TrainConfig config = config_of();
  const support::TinyBatch tiny(config, 3);
  Found found;
  std::mutex guard;
  run_ranks(shape.ranks(), [&](Communicator& world) {
    support::MeshModel x(config, world, shape, order);
    GateSumsBuffer gates(x.stream.device(), x.model);
    Batch part = x.part_of(tiny.view());
    const std::vector<int32_t> samples = samples_of(part, length() * x.first_of(sequences()));
    part.samples = samples;
    Transformer::Run run = x.run(plan);
    gates.clear(x.stream, true);
    run.gates = gates.views(true);
    run.kept_of_layers = kept;
    x.model.forward_backward(run, part, 1);
    world.all_reduce(x.stream, run.gates.figures, Reduction::kSum);
    world.all_reduce(x.stream, run.gates.maps, Reduction::kSum);
    const GateSums read = gates.start_read(x.stream, true);
    x.stream.synchronize();
    if (world.rank() != 0) return;
    const std::lock_guard<std::mutex> lock(guard);
    found = {support::elements<float>(read.figures), support::elements<float>(read.maps)};
  });
  return found;
}

void expect_near(const Found& a, const Found& b, bool tiles_are_cut) {
  ASSERT_EQ(a.figures.size(), b.figures.size());
  for (size_t i = 0; i < a.figures.size(); ++i) {
    const auto place = static_cast<int64_t>(i) % GateFigures::kSize;
    if (tiles_are_cut && place >= GateFigures::kTiles && place <= GateFigures::kExecuted) continue;
    const auto expected = static_cast<double>(b.figures[i]);
    EXPECT_NEAR(static_cast<double>(a.figures[i]), expected, 1e-4 * std::max(1.0, expected))
        << "figure " << place;
  }
  ASSERT_EQ(a.maps.size(), b.maps.size());
  for (size_t i = 0; i < a.maps.size(); ++i) EXPECT_NEAR(a.maps[i], b.maps[i], 1e-4) << i;
}

const std::vector<int64_t> kKept{1, 2};

TEST(GateSums, EveryMeshFindsTheSame) {
  const Found one = measure({}, support::tiny_plan(), kKept);
  const double rows = one.figure(0, GateFigures::kRows);
  EXPECT_EQ(rows, std::ceil(static_cast<double>(length() * sequences()) / 5));
  EXPECT_GT(one.figure(0, GateFigures::kDropping), 0);
  EXPECT_EQ(one.figure(0, GateFigures::kChoosing), 0) << "layer 0 keeps one block";
  EXPECT_GT(one.figure(1, GateFigures::kChoosing), 0);
  EXPECT_LT(one.figure(0, GateFigures::kKept), rows);
  EXPECT_GT(one.figure(0, GateFigures::kKept), 0.3 * rows);
  EXPECT_LT(one.figure(0, GateFigures::kChosen), one.figure(1, GateFigures::kChosen));
  const std::vector<MeshShape> meshes{{1, 1, 2, 1}, {2, 1, 1, 1}, {1, 1, 1, 2}, {2, 1, 2, 2}};
  for (const MeshShape& mesh : support::fewer(meshes)) {
    SCOPED_TRACE(to_string(mesh));
    expect_near(measure(mesh, support::tiny_plan(), kKept), one, mesh.sequence * mesh.tensor > 1);
  }
}

TEST(GateSums, SoItDoesWithZigzag) {
  if (support::takes_less()) GTEST_SKIP() << "another order of the same rows";
  const Found one = measure({}, support::tiny_plan(), kKept);
  expect_near(measure({1, 1, 3, 1}, support::tiny_plan(), kKept, SequenceOrder::kZigzag), one,
              /*tiles_are_cut=*/true);
}

TEST(GateSums, WhileTheGateRestsEverythingIsKept) {
  const Found dense = measure({}, {.window = length()}, {});
  for (int64_t layer = 0; layer < 2; ++layer) {
    const double rows = dense.figure(layer, GateFigures::kRows);
    EXPECT_NEAR(dense.figure(layer, GateFigures::kKept), rows, 1e-4 * rows);
    EXPECT_EQ(dense.figure(layer, GateFigures::kChosen), 0);
    EXPECT_EQ(dense.figure(layer, GateFigures::kBlocks), 0);
    const double mass = dense.figure(layer, GateFigures::kSink) +
                        dense.figure(layer, GateFigures::kWindow) +
                        dense.figure(layer, GateFigures::kSelected);
    EXPECT_LT(mass, rows) << "the sink logit has a part";
    EXPECT_GT(mass, 0.5 * rows);
  }
}

TEST(GateSums, WithoutMapsOnlyFiguresAreTouched) {
  const TrainConfig config = config_of();
  ParameterStore store;
  const Transformer model(config.model(), DType::kF32, Recompute::kNothing, store);
  GateSumsBuffer gates(Device{}, model);
  EXPECT_TRUE(gates.views(false).maps.empty());
  EXPECT_EQ(gates.views(true).maps.shape(), (Shape{2, 1, kMapBins, kMapBins + 1}));
  EXPECT_EQ(gates.views(false).figures.shape(), (Shape{2, 1, GateFigures::kSize}));
  gates.views(true).maps.as<float>()[5] = 3;
  gates.views(true).figures.as<float>()[5] = 4;
  Stream stream(Device{}, 1);
  EXPECT_TRUE(gates.start_read(stream, false).maps.empty());
  EXPECT_EQ(gates.start_read(stream, true).maps.as<float>()[5], 3);
  EXPECT_EQ(gates.start_read(stream, true).figures.as<float>()[5], 4);
  gates.clear(stream, false);
  EXPECT_EQ(gates.views(true).maps.as<float>()[5], 3);
  EXPECT_EQ(gates.views(true).figures.as<float>()[5], 0);
  gates.clear(stream, true);
  EXPECT_EQ(gates.views(true).maps.as<float>()[5], 0);
}

TEST(GateSums, KeptBlocksAreGivenForEveryLayer) {
  const std::vector<int64_t> three{1, 2, 3};
  support::expect_error([&] { measure({}, support::tiny_plan(), three); },
                        "model: a plan has kept blocks for 3 layers, the model has 2");
}

}  // namespace
}  // namespace tessera
