#include "runtime/report/page_data.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/core/error.h"
#include "runtime/monitor/color_scale.h"

namespace tessera {

namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kPoints = 1000;    // of a curve
constexpr int64_t kGateRows = 9000;  // measures of gates, all groups together
constexpr int64_t kExpertNumbers = 300'000;
constexpr size_t kMostConfig = 1 << 20;  // bytes

// Five digits are more than a screen shows.
Json shortened(double value, const char* format = "%.5g") {
  if (!std::isfinite(value)) return nullptr;
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return std::strtod(text.data(), nullptr);
}

std::string base64(const std::string& bytes) {
  static constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve(4 * (bytes.size() / 3 + 1));
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t three = 0;
    for (size_t j = i; j < i + 3; ++j) {
      three = three << 8 | (j < bytes.size() ? static_cast<uint8_t>(bytes[j]) : 0u);
    }
    for (size_t j = 0; j < 4; ++j) {
      text += i + j <= bytes.size() ? kDigits[three >> (18 - 6 * j) & 63] : '=';
    }
  }
  return text;
}

/// Ranges of rows, each a point of the curves.
std::vector<std::pair<size_t, size_t>> points_of(int64_t rows) {
  std::vector<std::pair<size_t, size_t>> points;
  const int64_t count = std::min(rows, kPoints);
  for (int64_t i = 0; i < count; ++i) {
    points.emplace_back(i * rows / count, (i + 1) * rows / count);
  }
  return points;
}

Json curve(const std::vector<double>& values,
           const std::vector<std::pair<size_t, size_t>>& points) {
  Json mean = Json::array();
  Json least = Json::array();
  Json most = Json::array();
  bool single = true;
  for (const auto& [begin, end] : points) {
    double sum = 0;
    double low = HUGE_VAL;
    double high = -HUGE_VAL;
    double count = 0;
    for (size_t i = begin; i < end; ++i) {
      if (!std::isfinite(values[i])) continue;
      sum += values[i];
      low = std::min(low, values[i]);
      high = std::max(high, values[i]);
      ++count;
    }
    single = single && end - begin == 1;
    mean.push_back(shortened(sum / count));
    least.push_back(shortened(low));
    most.push_back(shortened(high));
  }
  Json result{{"mean", std::move(mean)}};
  if (!single) {
    result["min"] = std::move(least);
    result["max"] = std::move(most);
  }
  return result;
}

Json curves_of(const StepTable& steps) {
  const auto points = points_of(std::ssize(steps.steps));
  Json x{{"step", Json::array()}, {"tokens", Json::array()}, {"hours", Json::array()}};
  const std::vector<double>& tokens = steps.column("tokens");
  const std::vector<double>& ms = steps.column("ms");
  double milliseconds = 0;
  for (const auto& [begin, end] : points) {
    for (size_t i = begin; i < end; ++i) {
      if (!ms.empty() && std::isfinite(ms[i])) milliseconds += ms[i];
    }
    x["step"].push_back(steps.steps[end - 1]);
    x["tokens"].push_back(tokens.empty() ? Json() : shortened(tokens[end - 1], "%.15g"));
    x["hours"].push_back(shortened(milliseconds / 3.6e6, "%.7g"));
  }
  Json columns = Json::object();
  static const std::set<std::string> kLeftOut{"time", "tokens", "steps", "seconds_left"};
  for (const auto& [name, values] : steps.columns) {
    if (!kLeftOut.contains(name)) columns[name] = curve(values, points);
  }
  return {{"x", std::move(x)}, {"columns", std::move(columns)}};
}

// Few and far between, so that they have steps of their own.
Json validation_of(const StepTable& steps) {
  const std::vector<double>& losses = steps.column("validation_loss");
  std::vector<size_t> rows;
  for (size_t i = 0; i < losses.size(); ++i) {
    if (std::isfinite(losses[i])) rows.push_back(i);
  }
  const size_t stride = std::max<size_t>(1, (rows.size() + kPoints - 1) / kPoints);
  Json result{{"step", Json::array()}, {"loss", Json::array()}};
  for (size_t i = (rows.size() + stride - 1) % stride; i < rows.size(); i += stride) {
    result["step"].push_back(steps.steps[rows[i]]);
    result["loss"].push_back(shortened(losses[rows[i]]));
  }
  return result;
}

Json stages_of(const StepTable& steps) {
  constexpr size_t kMost = 200;
  Json stages = Json::array();
  for (size_t i = 0; i < steps.rows(); ++i) {
    const bool same = !stages.empty() && stages.back()["name"] == steps.stages[i];
    if (same || stages.size() >= kMost) {
      stages.back()["to"] = steps.steps[i];
    } else {
      stages.push_back(
          {{"name", steps.stages[i]}, {"from", steps.steps[i]}, {"to", steps.steps[i]}});
    }
  }
  return stages;
}

/// At most `count` of some steps, evenly, the first and the last among them.
std::set<int64_t> some_of(const std::set<int64_t>& all, int64_t count) {
  if (std::ssize(all) <= count) return all;
  const std::vector<int64_t> steps(all.begin(), all.end());
  std::set<int64_t> some;
  for (int64_t i = 0; i < count; ++i) {
    some.insert(
        steps[static_cast<size_t>(i * (std::ssize(steps) - 1) / std::max<int64_t>(1, count - 1))]);
  }
  return some;
}

void add_measure(const GateRow& row, Json& group) {
  const GateMeasure& gate = row.gate;
  const auto add = [&](const char* name, Json value) { group[name].push_back(std::move(value)); };
  const bool chose = gate.choosing_rows > 0;
  const bool dropped = gate.dropping_rows > 0;
  add("step", row.step);
  add("kept_blocks", gate.kept_blocks);
  add("kept_mass", shortened(gate.kept_mass));
  add("sink_mass", shortened(gate.sink_mass + gate.sink_logit_mass));
  add("window_mass", shortened(gate.window_mass));
  add("selected_mass", shortened(gate.selected_mass));
  add("entropy", chose ? shortened(gate.entropy) : Json());
  add("kl", chose ? shortened(gate.kl) : Json());
  add("margin", dropped ? shortened(gate.margin) : Json());
  add("ramp_share", dropped ? shortened(gate.ramp_share) : Json());
  add("waste", gate.waste > 0 ? shortened(gate.waste) : Json());
  const auto blocks = static_cast<double>(std::max<int64_t>(1, gate.blocks));
  add("never_selected", shortened(static_cast<double>(gate.never_selected) / blocks));
  add("hot", shortened(static_cast<double>(gate.hot) / blocks));
  Json frequency = Json::array();
  for (const double share : gate.frequency) {
    frequency.push_back(share < 0 || !dropped ? Json() : shortened(share, "%.3g"));
  }
  while (!frequency.empty() && frequency.back().is_null()) frequency.erase(frequency.size() - 1);
  add("frequency", std::move(frequency));
}

Json gates_of(const GateTable& table) {
  std::set<int64_t> steps;
  std::map<std::pair<int64_t, int64_t>, Json> groups;
  for (const GateRow& row : table.gates) {
    steps.insert(row.step);
    groups[{row.gate.layer, row.gate.group}];
  }
  const auto count = std::max<int64_t>(1, std::ssize(groups));
  const std::set<int64_t> some = some_of(steps, std::clamp<int64_t>(kGateRows / count, 5, 150));
  for (const GateRow& row : table.gates) {
    if (!some.contains(row.step)) continue;
    Json& group = groups[{row.gate.layer, row.gate.group}];
    group["layer"] = row.gate.layer;
    group["group"] = row.gate.group;
    add_measure(row, group);
  }
  Json result = Json::array();
  for (auto& [place, group] : groups) {
    if (!group.is_null()) result.push_back(std::move(group));
  }
  return result;
}

Json experts_of(const RunRecord& run) {
  std::set<int64_t> steps;
  std::map<int64_t, Json> layers;
  size_t experts = 1;
  for (const ExpertRow& row : run.gates.experts) {
    steps.insert(row.step);
    layers[row.moe_layer];
    experts = std::max(experts, row.tokens.size());
  }
  const int64_t numbers = std::max<int64_t>(1, std::ssize(layers) * static_cast<int64_t>(experts));
  const std::set<int64_t> some =
      some_of(steps, std::clamp<int64_t>(kExpertNumbers / numbers, 3, 100));
  for (const ExpertRow& row : run.gates.experts) {
    if (!some.contains(row.step)) continue;
    Json& layer = layers[row.moe_layer];
    layer["layer"] = run.first_moe_layer + row.moe_layer;
    layer["step"].push_back(row.step);
    double mean = 0;
    for (const double count : row.tokens) mean += count / static_cast<double>(row.tokens.size());
    Json load = Json::array();
    for (const double count : row.tokens) load.push_back(shortened(count / mean, "%.3g"));
    layer["load"].push_back(std::move(load));
  }
  Json result = Json::array();
  for (auto& [place, layer] : layers) {
    if (!layer.is_null()) result.push_back(std::move(layer));
  }
  return result;
}

Json maps_of(const PageMaps& maps) {
  Json result = Json::array();
  for (const PageMap& map : maps.maps) {
    result.push_back({{"step", map.step},
                      {"layer", map.layer},
                      {"group", map.group},
                      {"bins", map.bins},
                      {"shades", base64(map.shades)}});
  }
  return result;
}

Json changes_of(const GateTable& gates) {
  constexpr size_t kMost = 2000;
  Json result = Json::array();
  for (size_t i = gates.changes.size() - std::min(kMost, gates.changes.size());
       i < gates.changes.size(); ++i) {
    const GateChange& change = gates.changes[i];
    result.push_back({{"step", change.step},
                      {"layer", change.layer},
                      {"what", change.what},
                      {"old", change.old_value},
                      {"new", change.new_value},
                      {"reason", change.reason.substr(0, 300)}});
  }
  return result;
}

Json run_of(const RunRecord& run) {
  std::array<char, 40> now{};
  const std::time_t time = std::time(nullptr);
  std::tm local{};
  std::strftime(now.data(), now.size(), "%Y-%m-%d %H:%M", localtime_r(&time, &local));
  const auto last = [&](const char* name) {
    const std::vector<double>& values = run.steps.column(name);
    return values.empty() ? Json() : shortened(values.back(), "%.15g");
  };
  const std::vector<double>& times = run.steps.column("time");
  return {{"name", run.directory.lexically_normal().string()},
          {"written", now.data()},
          {"status", run.status},
          {"step", run.steps.steps.empty() ? 0 : run.steps.steps.back()},
          {"steps", run.steps.planned_steps},
          {"tokens", last("tokens")},
          {"stage", run.steps.stages.empty() ? "" : run.steps.stages.back()},
          {"seconds_left", last("seconds_left")},
          {"elapsed", times.empty() ? Json() : shortened(times.back() - times.front())},
          {"maps_there", run.maps.there}};
}

std::string scale_text() {
  std::string text;
  for (const Color& color : color_scale()) {
    std::array<char, 8> hex{};
    std::snprintf(hex.data(), hex.size(), "%02x%02x%02x", color.red, color.green, color.blue);
    text += hex.data();
  }
  return text;
}

}  // namespace

std::string page_data(const RunRecord& run) {
  Json warnings = Json::array();
  for (const RunWarning& warning : run.warnings) {
    warnings.push_back({{"bad", warning.level == RunWarning::Level::kBad},
                        {"text", warning.text},
                        {"step", warning.step}});
  }
  Json events = Json::array();
  for (const RunEvent& event : run.events) {
    events.push_back({{"kind", name_of(event.kind)},
                      {"step", event.step},
                      {"clock", event.clock},
                      {"text", event.text}});
  }
  const Json data{{"run", run_of(run)},
                  {"warnings", std::move(warnings)},
                  {"gaps", run.gaps},
                  {"stages", stages_of(run.steps)},
                  {"curves", curves_of(run.steps)},
                  {"validation", validation_of(run.steps)},
                  {"gates", gates_of(run.gates)},
                  {"changes", changes_of(run.gates)},
                  {"experts", experts_of(run)},
                  {"maps", maps_of(run.maps)},
                  {"events", std::move(events)},
                  {"scale", scale_text()},
                  {"config", run.config.substr(0, kMostConfig)}};
  // Bytes that are no UTF-8 come from damaged files.
  const std::string text = data.dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string safe;
  safe.reserve(text.size());
  for (const char c : text) c == '<' ? safe += "\\u003c" : safe += c;
  return safe;
}

}  // namespace tessera
