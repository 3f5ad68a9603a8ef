#include "runtime/report/map_files.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/monitor/gate_log.h"
#include "runtime/monitor/heat_map.h"
#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

constexpr int64_t kShades = 64 * 65 / 2;

/// A map whose rows see their own bin only.
void write_map(const TemporaryDirectory& run, int64_t step, int64_t layer) {
  HeatMap map{.rows = 64, .columns = 64, .shares = std::vector<float>(64 * 64, -1)};
  for (size_t row = 0; row < 64; ++row) {
    for (size_t column = 0; column <= row; ++column) {
      map.shares[row * 64 + column] = row == column ? 1.0f : 0.0f;
    }
  }
  GateMeasure gate;
  gate.layer = layer;
  const auto path = heat_map_path("", step, gate);
  run.write(path.string() + ".csv", to_csv(map));
}

TEST(MapFiles, PacksTheHalfThatQueriesSee) {
  const TemporaryDirectory run;
  write_map(run, 20, 1);
  write_map(run, 10, 0);
  run.write("heatmaps/step-00000010-layer-00-group-00.png", "a picture");
  run.write("heatmaps/step-00000010-layer-00-group-00.csv.tmp", "unfinished");
  const PageMaps maps = read_maps(run / "heatmaps", 1 << 20);
  ASSERT_EQ(maps.maps.size(), 2u);
  EXPECT_EQ(maps.there, 2);
  EXPECT_EQ(maps.maps[0].step, 10);
  EXPECT_EQ(maps.maps[1].layer, 1);
  EXPECT_EQ(maps.maps[0].bins, 64);
  const std::string& shades = maps.maps[0].shades;
  ASSERT_EQ(std::ssize(shades), kShades);
  EXPECT_EQ(shades[0], static_cast<char>(255));
  EXPECT_EQ(shades[1], 1) << "seen, and nothing there";
  EXPECT_EQ(shades[2], static_cast<char>(255));
}

TEST(MapFiles, LeavesOutStepsEvenlyButNotThoseWanted) {
  const TemporaryDirectory run;
  for (int64_t step = 10; step <= 1000; step += 10) write_map(run, step, 0);
  const PageMaps maps = read_maps(run / "heatmaps", 20 * kShades, {510, 520, 777});
  EXPECT_LE(maps.maps.size(), 20u);
  EXPECT_GE(maps.maps.size(), 15u);
  EXPECT_EQ(maps.there, 100);
  EXPECT_EQ(maps.maps.front().step, 10);
  EXPECT_EQ(maps.maps.back().step, 1000);
  for (const int64_t wanted : {510, 520}) {
    EXPECT_TRUE(std::any_of(maps.maps.begin(), maps.maps.end(), [&](const PageMap& map) {
      return map.step == wanted;
    })) << wanted;
  }
}

TEST(MapFiles, ManyGroupsGetCoarserMaps) {
  const TemporaryDirectory run;
  for (int64_t step = 1; step <= 10; ++step) {
    for (int64_t layer = 0; layer < 4; ++layer) write_map(run, step, layer);
  }
  const PageMaps maps = read_maps(run / "heatmaps", 12 * kShades);
  ASSERT_FALSE(maps.maps.empty());
  EXPECT_EQ(maps.maps[0].bins, 32);
  EXPECT_EQ(std::ssize(maps.maps[0].shades), 32 * 33 / 2);
  EXPECT_EQ(maps.maps[0].shades[0], static_cast<char>(255)) << "the mass of a row stays";
  int64_t bytes = 0;
  for (const PageMap& map : maps.maps) bytes += std::ssize(map.shades);
  EXPECT_LE(bytes, 12 * kShades);
}

TEST(MapFiles, DamagedMapsAreCounted) {
  const TemporaryDirectory run;
  write_map(run, 1, 0);
  run.write("heatmaps/step-00000002-layer-00-group-00.csv", "0.5,\n0.5");
  run.write("heatmaps/step-00000003-layer-00-group-00.csv", "");
  const PageMaps maps = read_maps(run / "heatmaps", 1 << 20);
  EXPECT_EQ(maps.maps.size(), 1u);
  EXPECT_EQ(maps.damaged, 2);
  EXPECT_TRUE(read_maps("/nowhere", 1 << 20).maps.empty());
}

}  // namespace
}  // namespace tessera
