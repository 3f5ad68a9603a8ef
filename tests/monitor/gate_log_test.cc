#include "runtime/monitor/gate_log.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "runtime/monitor/heat_map.h"
#include "tests/monitor/event_records.h"
#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBins = GateMeasure::kBins;

/// Every row sees the first key bin and its own, by halves; query bin 9 has no sampled row.
GateMeasure measure(int64_t layer) {
  GateMeasure gate;
  gate.layer = layer;
  gate.group = 2;
  gate.kept_blocks = 5;
  gate.rows = 64;
  gate.kept_mass = 0.97;
  gate.choosing_rows = 60;
  gate.dropping_rows = 50;
  gate.frequency.fill(-1);
  gate.frequency[0] = 0.5;
  gate.frequency[3] = 0.125;
  gate.heat_map.assign(kBins * kBins, 0);
  for (int64_t query = 0; query < kBins; ++query) {
    if (query == 9) continue;
    gate.heat_map[static_cast<size_t>(query * kBins)] += 0.5f;
    gate.heat_map[static_cast<size_t>(query * kBins + query)] += 0.5f;
  }
  return gate;
}

std::string content(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<std::string> maps_in(const fs::path& run) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(run / "heatmaps")) {
    names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST(GateLog, WritesOneLineForEveryMeasure) {
  const TemporaryDirectory run;
  GateLog log(run / ".");
  log.add({.step = 100, .gates = {}}, nullptr);
  EXPECT_FALSE(fs::exists(run / "gates.jsonl"));
  log.add({.step = 200, .gates = {measure(1), measure(3)}}, nullptr);
  std::istringstream lines(content(run / "gates.jsonl"));
  for (const int layer : {1, 3}) {
    std::string line;
    ASSERT_TRUE(std::getline(lines, line));
    const auto json = nlohmann::json::parse(line);
    EXPECT_EQ(json["step"], 200);
    EXPECT_EQ(json["layer"], layer);
    EXPECT_EQ(json["group"], 2);
    EXPECT_EQ(json["kept_blocks"], 5);
    EXPECT_EQ(json["kept_mass"], 0.97);
    EXPECT_EQ(json["frequency"].size(), static_cast<size_t>(GateMeasure::kDistances));
    EXPECT_FALSE(json.contains("heat_map"));
  }
}

TEST(GateLog, MapsHideTheFutureAndWhatWasNotSampled) {
  const TemporaryDirectory run;
  GateLog(run / ".").add({.step = 7, .gates = {measure(0)}}, nullptr);
  EXPECT_EQ(maps_in(run / "."), (std::vector<std::string>{"step-00000007-layer-00-group-02.csv",
                                                          "step-00000007-layer-00-group-02.png"}));
  const fs::path path = heat_map_path(run / ".", 7, measure(0));
  const std::optional<HeatMap> map = heat_map_from_csv(content(path.string() + ".csv"));
  ASSERT_TRUE(map.has_value());
  const auto at = [&](int64_t query, int64_t key) {
    return map->shares[static_cast<size_t>(query * kBins + key)];
  };
  EXPECT_EQ(at(0, 0), 1);
  EXPECT_EQ(at(20, 20), 0.5f);
  EXPECT_EQ(at(20, 10), 0);
  EXPECT_LT(at(20, 21), 0);
  EXPECT_LT(at(9, 0), 0);
}

TEST(GateLog, AChangeHasAMapBeforeAndAfter) {
  const TemporaryDirectory run;
  GateLog log(run / ".");
  const auto add = [&](int64_t step, int64_t kept_blocks, bool settled = true) {
    std::vector<GateMeasure> gates{measure(0), measure(1)};
    gates[1].kept_blocks = kept_blocks;
    log.add({.step = step, .gates = gates, .maps_due = false, .settled = settled}, nullptr);
  };
  add(100, 9, /*settled=*/false);
  add(200, 8, /*settled=*/false);
  add(300, 8);
  EXPECT_FALSE(fs::exists(run / "heatmaps"));
  add(400, 5);
  add(500, 5);
  EXPECT_EQ(maps_in(run / "."),
            (std::vector<std::string>{
                "step-00000300-layer-01-group-02.csv", "step-00000300-layer-01-group-02.png",
                "step-00000400-layer-01-group-02.csv", "step-00000400-layer-01-group-02.png"}));
}

TEST(GateLog, TellsTensorBoard) {
  const TemporaryDirectory run;
  EventFile events(run / "tensorboard", 1);
  GateLog(run / ".").add({.step = 9, .gates = {measure(4)}}, &events);
  std::set<std::string> tags;
  for (const tensorboard::Event& event : events_in(event_files(run / "tensorboard")[0])) {
    for (const auto& value : event.summary().value()) tags.insert(value.tag());
  }
  for (const char* tag : {"kept_mass", "sink_mass", "margin", "selection_distance", "heat_map"}) {
    EXPECT_TRUE(tags.contains(concat(tag, "/layer-04-group-02"))) << tag;
  }
}

TEST(GateLog, TroubleWithAMapIsToldOnce) {
  const TemporaryDirectory run;
  std::ofstream(run / "heatmaps") << "a file";
  testing::internal::CaptureStderr();
  GateLog log(run / ".");
  log.add({.step = 1, .gates = {measure(0), measure(1)}}, nullptr);
  log.add({.step = 2, .gates = {measure(0)}}, nullptr);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("training goes on without this heat map"), std::string::npos) << said;
  EXPECT_EQ(said.find("warning: "), said.rfind("warning: ")) << said;
  EXPECT_FALSE(content(run / "gates.jsonl").empty());
}

}  // namespace
}  // namespace tessera
