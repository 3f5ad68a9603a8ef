#include "runtime/report/step_table.h"

#include <limits>
#include <nlohmann/json.hpp>

namespace tessera {

namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

void drop_from(StepTable& table, int64_t step) {
  const size_t before = table.rows();
  while (!table.steps.empty() && table.steps.back() >= step) table.steps.pop_back();
  if (table.rows() == before) return;
  table.stages.resize(table.rows());
  for (auto& [name, values] : table.columns) values.resize(std::min(values.size(), table.rows()));
  table.repetitions.push_back(
      {.first_step = step, .repeated = static_cast<int64_t>(before - table.rows())});
}

bool take(StepTable& table, std::string_view line) {
  const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return false;
  const auto step = json.find("step");
  if (step == json.end() || !step->is_number_integer()) return false;
  const auto number = step->get<int64_t>();
  if (number < 1) return false;
  drop_from(table, number);
  const size_t row = table.rows();
  table.steps.push_back(number);
  table.stages.emplace_back();
  for (const auto& [name, value] : json.items()) {
    if (name == "step") continue;
    if (name == "stage" && value.is_string()) table.stages.back() = value.get<std::string>();
    if (name == "steps" && value.is_number_integer()) table.planned_steps = value.get<int64_t>();
    if (!value.is_number() && !value.is_boolean()) continue;
    std::vector<double>& column = table.columns[name];
    column.resize(row, kNone);
    column.push_back(value.is_boolean() ? double{value.get<bool>() ? 1.0 : 0.0}
                                        : value.get<double>());
  }
  return true;
}

}  // namespace

const std::vector<double>& StepTable::column(const std::string& name) const {
  static const std::vector<double> kEmpty;
  const auto found = columns.find(name);
  return found == columns.end() ? kEmpty : found->second;
}

StepTable read_steps(const std::filesystem::path& path) {
  StepTable table;
  table.lines = read_lines(path, [&](std::string_view line) { return take(table, line); });
  for (auto& [name, values] : table.columns) values.resize(table.rows(), kNone);
  return table;
}

}  // namespace tessera
