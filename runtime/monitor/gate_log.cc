#include "runtime/monitor/gate_log.h"

#include <array>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/core/log.h"
#include "runtime/monitor/heat_map.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

std::string name_of(const GateMeasure& gate) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "layer-%02ld-group-%02ld", static_cast<long>(gate.layer),
                static_cast<long>(gate.group));
  return text.data();
}

// No query sees the future, and nothing is known of bins without a sampled row.
HeatMap map_of(const GateMeasure& gate) {
  constexpr int64_t kBins = GateMeasure::kBins;
  HeatMap map{.rows = kBins, .columns = kBins, .shares = gate.heat_map};
  CHECK(std::ssize(map.shares) == kBins * kBins, "the heat map of layer ", gate.layer, " has ",
        map.shares.size(), " bins, expected ", kBins * kBins);
  for (int64_t query = 0; query < kBins; ++query) {
    float sum = 0;
    for (int64_t key = 0; key < kBins; ++key) {
      sum += map.shares[static_cast<size_t>(query * kBins + key)];
    }
    for (int64_t key = sum > 0 ? query + 1 : 0; key < kBins; ++key) {
      map.shares[static_cast<size_t>(query * kBins + key)] = -1;
    }
  }
  return map;
}

// Whole or not at all: somebody may look at it right now.
void write_whole(const fs::path& path, const std::string& content) {
  const fs::path temporary = path.string() + ".tmp";
  std::ofstream out(temporary, std::ios::binary);
  out << content;
  out.close();
  std::error_code trouble;
  if (out) fs::rename(temporary, path, trouble);
  if (out && !trouble) return;
  std::error_code none;
  fs::remove(temporary, none);
  throw Error(ExitCode::kTryAgain,
              concat("cannot write ", path.string(), "; is the disk full, or read only?"));
}

// A bin of GateMeasure holds distances from 2^b on.
Histogram distances_of(const GateMeasure& gate) {
  Histogram histogram{.limits = {}, .counts = {}, .begin = 1};
  for (size_t bin = 0; bin < gate.frequency.size(); ++bin) {
    if (gate.frequency[bin] < 0) continue;
    histogram.limits.push_back(std::ldexp(1.0, static_cast<int>(bin) + 1));
    histogram.counts.push_back(gate.frequency[bin]);
  }
  return histogram;
}

}  // namespace

std::string to_json(const GateMeasure& gate, int64_t step) {
  return nlohmann::ordered_json{{"step", step},
                                {"layer", gate.layer},
                                {"group", gate.group},
                                {"kept_blocks", gate.kept_blocks},
                                {"rows", gate.rows},
                                {"kept_mass", gate.kept_mass},
                                {"sink_mass", gate.sink_mass},
                                {"window_mass", gate.window_mass},
                                {"selected_mass", gate.selected_mass},
                                {"sink_logit_mass", gate.sink_logit_mass},
                                {"choosing_rows", gate.choosing_rows},
                                {"entropy", gate.entropy},
                                {"kl", gate.kl},
                                {"dropping_rows", gate.dropping_rows},
                                {"margin", gate.margin},
                                {"ramp_share", gate.ramp_share},
                                {"union_blocks", gate.union_blocks},
                                {"waste", gate.waste},
                                {"frequency", gate.frequency},
                                {"blocks", gate.blocks},
                                {"never_selected", gate.never_selected},
                                {"hot", gate.hot}}
      .dump();
}

fs::path heat_map_path(const fs::path& run_directory, int64_t step, const GateMeasure& gate) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "step-%08ld-", static_cast<long>(step));
  return run_directory / "heatmaps" / concat(text.data(), name_of(gate));
}

GateLog::GateLog(const fs::path& run_directory)
    : run_directory_(run_directory),
      lines_(run_directory / "gates.jsonl", AppendFile::Kind::kLines) {}

void GateLog::add(const Step& step, EventFile* events) {
  if (step.gates.empty()) return;
  std::string lines;
  for (const GateMeasure& gate : step.gates) {
    lines += to_json(gate, step.step) + "\n";
    if (events != nullptr) add_events(step.step, gate, *events);
    if (!gate.heat_map.empty()) add_map(step, gate, events);
  }
  lines_.append(lines);
}

void GateLog::add_map(const Step& step, const GateMeasure& gate, EventFile* events) {
  Before& before = before_[{gate.layer, gate.group}];
  const bool changed =
      step.settled && before.step > 0 && before.gate.kept_blocks != gate.kept_blocks;
  if (changed && !before.written) write_map(before.step, before.gate, events);
  const bool written = step.maps_due || changed;
  if (written) write_map(step.step, gate, events);
  before = {.step = step.step, .gate = gate, .written = written};
}

void GateLog::add_events(int64_t step, const GateMeasure& gate, EventFile& events) {
  const std::string name = concat("/", name_of(gate));
  std::vector<Scalar> scalars{{"kept_mass" + name, gate.kept_mass},
                              {"sink_mass" + name, gate.sink_mass},
                              {"window_mass" + name, gate.window_mass},
                              {"selected_mass" + name, gate.selected_mass}};
  if (gate.choosing_rows > 0) {
    scalars.push_back({"choice_entropy" + name, gate.entropy});
    scalars.push_back({"choice_kl" + name, gate.kl});
    scalars.push_back({"waste" + name, gate.waste});
  }
  if (gate.dropping_rows > 0) {
    scalars.push_back({"margin" + name, gate.margin});
    scalars.push_back({"ramp_share" + name, gate.ramp_share});
    events.add_histogram(step, "selection_distance" + name, distances_of(gate));
  }
  events.add_scalars(step, scalars);
}

void GateLog::write_map(int64_t step, const GateMeasure& gate, EventFile* events) {
  try {
    const HeatMap map = map_of(gate);
    const fs::path path = heat_map_path(run_directory_, step, gate);
    const std::string png = to_png(map);
    fs::create_directories(path.parent_path());
    write_whole(path.string() + ".csv", to_csv(map));
    write_whole(path.string() + ".png", png);
    if (events == nullptr) return;
    events->add_picture(
        step, concat("heat_map/", name_of(gate)),
        {.png = png, .height = map.rows * kBinPixels, .width = map.columns * kBinPixels});
  } catch (const std::exception& error) {
    if (std::exchange(told_, true)) return;
    log_line(concat("warning: ", error.what(), "; training goes on without this heat map"));
  }
}

}  // namespace tessera
