#include "runtime/report/gate_table.h"

#include <nlohmann/json.hpp>
#include <tuple>

namespace tessera {

namespace {

using Json = nlohmann::json;

/// Fields of a line; what is missing or of another type makes the line a damaged one.
class Fields {
 public:
  explicit Fields(std::string_view line)
      : json_(Json::parse(line, nullptr, /*allow_exceptions=*/false)), whole_(json_.is_object()) {}

  bool whole() const { return whole_; }
  void read(const char* name, int64_t& into) {
    const Json* value = field(name, &Json::is_number_integer);
    if (value != nullptr) into = value->get<int64_t>();
  }
  void read(const char* name, double& into) {
    const Json* value = field(name, &Json::is_number);
    if (value != nullptr) into = value->get<double>();
  }
  void read(const char* name, std::string& into) {
    whole_ = whole_ && json_.contains(name);
    if (!whole_) return;
    const Json& value = json_[name];
    into = value.is_string() ? value.get<std::string>()
                             : value.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  template <class Numbers>
  void read_all(const char* name, Numbers& into) {
    const Json* value = field(name, &Json::is_array);
    if (value == nullptr) return;
    if constexpr (requires { into.resize(1); }) into.resize(value->size());
    whole_ = value->size() == into.size();
    for (size_t i = 0; whole_ && i < into.size(); ++i) {
      whole_ = (*value)[i].is_number();
      if (whole_) into[i] = (*value)[i].get<double>();
    }
  }

 private:
  const Json* field(const char* name, bool (Json::*is)() const noexcept) {
    whole_ = whole_ && json_.contains(name) && (json_[name].*is)();
    return whole_ ? &json_[name] : nullptr;
  }

  Json json_;
  bool whole_;
};

/// Adds a row, and forgets what an earlier start had from its place on.
template <class Row, class Place>
void add(std::vector<Row>& rows, Row row, const Place& place_of) {
  const bool again = !rows.empty() && place_of(rows.back()) >= place_of(row);
  while (again && !rows.empty() && rows.back().step >= row.step) rows.pop_back();
  rows.push_back(std::move(row));
}

// A model has fewer of anything.
bool plausible(int64_t number) {
  return number >= 0 && number < 1'000'000;
}

bool take_gate(std::string_view line, std::vector<GateRow>& rows) {
  Fields fields(line);
  GateRow row;
  GateMeasure& gate = row.gate;
  fields.read("step", row.step);
  fields.read("layer", gate.layer);
  fields.read("group", gate.group);
  fields.read("kept_blocks", gate.kept_blocks);
  fields.read("kept_mass", gate.kept_mass);
  fields.read("sink_mass", gate.sink_mass);
  fields.read("window_mass", gate.window_mass);
  fields.read("selected_mass", gate.selected_mass);
  fields.read("sink_logit_mass", gate.sink_logit_mass);
  fields.read("choosing_rows", gate.choosing_rows);
  fields.read("entropy", gate.entropy);
  fields.read("kl", gate.kl);
  fields.read("dropping_rows", gate.dropping_rows);
  fields.read("margin", gate.margin);
  fields.read("ramp_share", gate.ramp_share);
  fields.read("union_blocks", gate.union_blocks);
  fields.read("waste", gate.waste);
  fields.read("blocks", gate.blocks);
  fields.read("never_selected", gate.never_selected);
  fields.read("hot", gate.hot);
  fields.read_all("frequency", gate.frequency);
  if (!fields.whole() || !plausible(gate.layer) || !plausible(gate.group)) return false;
  add(rows, std::move(row),
      [](const GateRow& r) { return std::tuple(r.step, r.gate.layer, r.gate.group); });
  return true;
}

bool take_change(std::string_view line, std::vector<GateChange>& rows) {
  Fields fields(line);
  GateChange row;
  fields.read("step", row.step);
  if (line.find("\"layer\"") != std::string_view::npos) fields.read("layer", row.layer);
  fields.read("what", row.what);
  fields.read("old", row.old_value);
  fields.read("new", row.new_value);
  fields.read("reason", row.reason);
  if (!fields.whole()) return false;
  while (!rows.empty() && rows.back().step > row.step) rows.pop_back();
  for (size_t i = rows.size(); i > 0 && rows[i - 1].step == row.step; --i) {
    if (rows[i - 1].layer != row.layer || rows[i - 1].what != row.what) continue;
    rows[i - 1] = std::move(row);
    return true;
  }
  rows.push_back(std::move(row));
  return true;
}

bool take_expert(std::string_view line, std::vector<ExpertRow>& rows) {
  Fields fields(line);
  ExpertRow row;
  fields.read("step", row.step);
  fields.read("moe_layer", row.moe_layer);
  fields.read_all("tokens", row.tokens);
  if (!fields.whole() || !plausible(row.moe_layer)) return false;
  add(rows, std::move(row), [](const ExpertRow& r) { return std::pair(r.step, r.moe_layer); });
  return true;
}

}  // namespace

GateTable read_gates(const std::filesystem::path& run_directory) {
  GateTable table;
  table.gate_lines = read_lines(run_directory / "gates.jsonl", [&](std::string_view line) {
    return take_gate(line, table.gates);
  });
  table.change_lines = read_lines(run_directory / "gate_changes.jsonl", [&](std::string_view line) {
    return take_change(line, table.changes);
  });
  table.expert_lines = read_lines(run_directory / "experts.jsonl", [&](std::string_view line) {
    return take_expert(line, table.experts);
  });
  return table;
}

}  // namespace tessera
