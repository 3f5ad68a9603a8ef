#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <map>
#include <set>

#include "kernels/core/error.h"
#include "runtime/report/warnings.h"

namespace tessera {

namespace {

using Level = RunWarning::Level;

constexpr size_t kNamed = 4;          // groups that a sentence names, the worst first
constexpr double kOnlySink = 0.9;     // share of attention's mass
constexpr double kOnlyWindow = 0.97;  // of what is not on the sink
constexpr double kKeptMass = 0.9;     // of full attention's mass
constexpr double kNever = 0.5;        // share of blocks
constexpr double kHot = 0.25;         // share of blocks
constexpr double kOften = 1.0 / 3;    // a gate that keeps so many blocks must choose some often
constexpr int64_t kFewBlocks = 8;     // fewer say nothing
constexpr double kWaste = 4;          // times
constexpr int64_t kTurns = 4;         // changes of direction
constexpr double kCrowded = 3;        // times the mean of experts
constexpr double kIdle = 0.02;        // of the mean
constexpr int64_t kMeasures = 5;      // of experts, the last ones, are taken together

std::string percent(double share) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.0f%%", 100 * share);
  return text.data();
}

std::string times(double factor) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), factor < 10 ? "%.1fx" : "%.0fx", factor);
  return text.data();
}

/// How often a candidate is chosen, whatever its distance.
double mean_frequency(const GateMeasure& gate) {
  double sum = 0;
  double count = 0;
  for (const double share : gate.frequency) {
    if (share < 0) continue;
    sum += share;
    ++count;
  }
  return count > 0 ? sum / count : 1;
}

/// The last measure of each group.
std::vector<GateRow> last_measures(const std::vector<GateRow>& rows) {
  std::map<std::pair<int64_t, int64_t>, const GateRow*> last;
  for (const GateRow& row : rows) last[{row.gate.layer, row.gate.group}] = &row;
  std::vector<GateRow> measures;
  for (const auto& [place, row] : last) measures.push_back(*row);
  return measures;
}

/// What is told of every group that is beyond a limit.
struct GateRule {
  Level level;
  /// How far beyond, the larger the worse; 0 and less: not at all.
  std::function<double(const GateMeasure&)> beyond;
  std::function<std::string(const GateMeasure&)> sentence;  ///< behind "layer 3 group 0 "
};

const std::vector<GateRule>& rules() {
  static const std::vector<GateRule> kRules{
      {Level::kLook,
       [](const GateMeasure& g) { return g.sink_mass + g.sink_logit_mass - kOnlySink; },
       [](const GateMeasure& g) {
         return concat("attends almost only to the sink (",
                       percent(g.sink_mass + g.sink_logit_mass), " of its mass)");
       }},
      {Level::kLook,
       [](const GateMeasure& g) {
         const double rest = 1 - g.sink_mass - g.sink_logit_mass;
         return g.choosing_rows > 0 && rest > 1 - kOnlySink ? g.window_mass - kOnlyWindow * rest
                                                            : 0;
       },
       [](const GateMeasure& g) {
         return concat("hardly looks beyond its window (", percent(g.selected_mass),
                       " of its mass is on chosen blocks)");
       }},
      {Level::kBad, [](const GateMeasure& g) { return kKeptMass - g.kept_mass; },
       [](const GateMeasure& g) {
         return concat("keeps only ", percent(g.kept_mass), " of the mass of full attention with ",
                       g.kept_blocks, " blocks");
       }},
      {Level::kLook,
       [](const GateMeasure& g) {
         const auto blocks = static_cast<double>(g.blocks);
         return g.blocks < kFewBlocks ? 0 : static_cast<double>(g.never_selected) / blocks - kNever;
       },
       [](const GateMeasure& g) {
         return concat("never chooses ", g.never_selected, " of its ", g.blocks, " blocks");
       }},
      {Level::kLook,
       [](const GateMeasure& g) {
         const auto blocks = static_cast<double>(g.blocks);
         const bool tells = g.blocks >= kFewBlocks && mean_frequency(g) < kOften;
         return tells ? static_cast<double>(g.hot) / blocks - kHot : 0;
       },
       [](const GateMeasure& g) {
         return concat("chooses ", g.hot, " of its ", g.blocks, " blocks nearly always");
       }},
      {Level::kLook, [](const GateMeasure& g) { return g.waste - kWaste; },
       [](const GateMeasure& g) {
         return concat("reads ", times(g.waste), " the blocks that its tokens chose");
       }},
  };
  return kRules;
}

// A budget that goes up and down again and again has no place where it is right.
void look_at_changes(const GateTable& gates, std::vector<RunWarning>& warnings) {
  std::map<std::pair<int64_t, std::string>, std::vector<double>> values;
  for (const GateChange& change : gates.changes) {
    char* end = nullptr;
    const double value = std::strtod(change.new_value.c_str(), &end);
    if (end == change.new_value.c_str()) continue;
    values[{change.layer, change.what}].push_back(value);
  }
  for (const auto& [place, all] : values) {
    int64_t turns = 0;
    for (size_t i = 2; i < all.size(); ++i) {
      turns += (all[i] - all[i - 1]) * (all[i - 1] - all[i - 2]) < 0 ? 1 : 0;
    }
    if (turns < kTurns) continue;
    warnings.push_back(
        {Level::kLook, concat("layer ", place.first, ": ", place.second, " goes to and fro, ",
                              turns, " turns in ", all.size(), " changes")});
  }
}

/// Tokens of each expert of each MoE layer in its last few measures.
std::map<int64_t, std::vector<double>> last_tokens(const std::vector<ExpertRow>& rows) {
  std::map<int64_t, std::vector<double>> tokens;
  std::map<int64_t, int64_t> measures;
  for (auto row = rows.rbegin(); row != rows.rend(); ++row) {
    if (measures[row->moe_layer]++ >= kMeasures) continue;
    std::vector<double>& sum = tokens[row->moe_layer];
    sum.resize(std::max(sum.size(), row->tokens.size()));
    for (size_t e = 0; e < row->tokens.size(); ++e) sum[e] += row->tokens[e];
  }
  return tokens;
}

}  // namespace

std::vector<RunWarning> warnings_of_gates(const GateTable& gates) {
  std::vector<RunWarning> warnings;
  const std::vector<GateRow> measures = last_measures(gates.gates);
  for (const GateRule& rule : rules()) {
    std::vector<const GateRow*> beyond;
    for (const GateRow& row : measures) {
      if (rule.beyond(row.gate) > 0) beyond.push_back(&row);
    }
    std::stable_sort(beyond.begin(), beyond.end(), [&](const GateRow* a, const GateRow* b) {
      return rule.beyond(a->gate) > rule.beyond(b->gate);
    });
    for (size_t i = 0; i < std::min(kNamed, beyond.size()); ++i) {
      const GateMeasure& gate = beyond[i]->gate;
      std::string text =
          concat("layer ", gate.layer, " group ", gate.group, " ", rule.sentence(gate));
      if (i + 1 == kNamed && beyond.size() > kNamed) {
        text += concat("; and so do ", beyond.size() - kNamed, " more groups");
      }
      warnings.push_back({rule.level, std::move(text), beyond[i]->step});
    }
  }
  look_at_changes(gates, warnings);
  return warnings;
}

std::vector<RunWarning> warnings_of_experts(const GateTable& gates, int64_t first_layer) {
  std::vector<RunWarning> warnings;
  for (const auto& [moe_layer, tokens] : last_tokens(gates.experts)) {
    double mean = 0;
    for (const double count : tokens) mean += count / static_cast<double>(tokens.size());
    std::vector<size_t> idle;
    for (size_t e = 0; e < tokens.size() && mean > 0; ++e) {
      if (tokens[e] > kCrowded * mean) {
        warnings.push_back(
            {Level::kLook, concat("expert ", e, " of layer ", first_layer + moe_layer, " gets ",
                                  times(tokens[e] / mean), " the mean")});
      }
      if (tokens[e] < kIdle * mean) idle.push_back(e);
    }
    if (idle.empty()) continue;
    warnings.push_back(
        {Level::kLook, concat(idle.size() == 1 ? concat("expert ", idle.front(), " of layer ")
                                               : concat(idle.size(), " experts of layer "),
                              first_layer + moe_layer,
                              idle.size() == 1 ? " gets almost no tokens"
                                               : concat(" get almost no tokens, expert ",
                                                        idle.front(), " among them"))});
  }
  return warnings;
}

}  // namespace tessera
