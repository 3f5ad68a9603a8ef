#include "runtime/train/report_line.h"

#include <array>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "kernels/core/error.h"

namespace tessera {

namespace {

double tokens_per_second(const StepReport& report) {
  return static_cast<double>(report.tokens) / std::max(1e-9, report.seconds);
}

double tflops(const StepReport& report, const RateBasis& basis) {
  return tokens_per_second(report) * basis.flops_per_token / basis.ranks * 1e-12;
}

std::string number(const char* format, double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return text.data();
}

double seconds_left(const StepReport& report) {
  return report.seconds * static_cast<double>(report.steps - report.plan.step);
}

// JSON has no NaN: a value that is not finite is null there.
nlohmann::ordered_json finite(double value) {
  if (!std::isfinite(value)) return nullptr;
  return value;
}

}  // namespace

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  std::array<char, 32> text{};
  if (s >= 3600) {
    std::snprintf(text.data(), text.size(), "%ldh%02ldm", s / 3600, s / 60 % 60);
  } else if (s >= 60) {
    std::snprintf(text.data(), text.size(), "%ldm%02lds", s / 60, s % 60);
  } else {
    std::snprintf(text.data(), text.size(), "%lds", s);
  }
  return text.data();
}

std::string report_line(const StepReport& report, const RateBasis& basis) {
  const double rate = tflops(report, basis);
  std::string line = concat(
      "step ", report.plan.step, "/", report.steps, "  tokens ", report.consumed_tokens,
      number("  loss %.4f", report.loss), number("  grad %.3f", report.gradient_norm),
      number("  lr %.2e", report.plan.learning_rate), number("  %.0f ms", 1000 * report.seconds),
      number("  %.0f tok/s", tokens_per_second(report)), number("  %.3f TFLOP/s", rate));
  line += basis.peak_tflops > 0 ? number("  MFU %.1f%%", 100 * rate / basis.peak_tflops)
                                : "  MFU unknown";
  line +=
      number("  mem %.2f GiB", basis.memory_gib) + number(" (%.0f%%)", 100 * basis.memory_share);
  line += number("  data %.1f%%", 100 * report.data_seconds / std::max(1e-9, report.seconds));
  line += concat("  ", name_of(report.plan.stage));
  if (report.plan.gated) {
    line +=
        number("  sparsity %.2f", report.sparsity) + number("  gate %.2f", report.gate_openness);
  }
  if (report.sparsity_cost) line += number("  sparsity costs %.4f", *report.sparsity_cost);
  if (report.tree_recall >= 0) line += number("  tree recall %.2f", report.tree_recall);
  if (report.expert_load.experts > 0) {
    line += number("  experts max/mean %.2f", report.expert_load.experts);
    if (report.expert_load.rank_tokens.size() > 1)
      line += number(" ranks %.2f", report.expert_load.ranks);
  }
  if (report.expert_load.dropped > 0) line += concat("  dropped ", report.expert_load.dropped);
  if (report.skipped_steps > 0) line += concat("  skipped ", report.skipped_steps);
  if (report.validation_loss >= 0) line += number("  validation %.4f", report.validation_loss);
  if (report.accuracy >= 0) line += number("  accuracy %.4f", report.accuracy);
  return line + "  left " + duration(seconds_left(report));
}

std::string report_json(const StepReport& report, const RateBasis& basis) {
  const double rate = tflops(report, basis);
  nlohmann::ordered_json json{{"step", report.plan.step},
                              {"steps", report.steps},
                              {"tokens", report.consumed_tokens},
                              {"loss", finite(report.loss)},
                              {"gradient_norm", finite(report.gradient_norm)},
                              {"learning_rate", report.plan.learning_rate},
                              {"ms", 1000 * report.seconds},
                              {"tokens_per_second", tokens_per_second(report)},
                              {"tflops_per_device", rate},
                              {"mfu", nullptr},
                              {"memory_gib", basis.memory_gib},
                              {"memory_share", basis.memory_share},
                              {"data_wait", report.data_seconds / std::max(1e-9, report.seconds)},
                              {"stage", name_of(report.plan.stage)},
                              {"kept_blocks", report.plan.kept_blocks},
                              {"window", report.plan.window},
                              {"gate_strength", report.plan.gate_strength},
                              {"sparsity", report.sparsity},
                              {"gate_openness", report.gate_openness},
                              {"gate_kl", finite(report.gate_kl)},
                              {"gate_entropy", finite(report.gate_entropy)},
                              {"gate_z", finite(report.gate_z)},
                              {"balance_loss", finite(report.balance_loss)},
                              {"router_z", finite(report.router_z)},
                              {"expert_load", report.expert_load.experts},
                              {"expert_load_layer", report.expert_load.layer},
                              {"expert_tokens", report.expert_load.expert_tokens},
                              {"rank_load", report.expert_load.ranks},
                              {"rank_tokens", report.expert_load.rank_tokens},
                              {"dropped_pairs", report.expert_load.dropped},
                              {"skipped", report.skipped},
                              {"skipped_steps", report.skipped_steps},
                              {"seconds_left", seconds_left(report)},
                              {"time", basis.time}};
  if (basis.peak_tflops > 0) json["mfu"] = rate / basis.peak_tflops;
  if (report.plan.sequences > 0) {
    json["sequences"] = report.plan.sequences;
    json["sequence_length"] = report.plan.sequence_length;
  }
  if (!report.plan.weights.empty()) json["source_weights"] = report.plan.weights;
  if (report.plan.pool < 1) json["pool"] = report.plan.pool;
  if (report.sparsity_cost) json["sparsity_cost"] = finite(*report.sparsity_cost);
  if (report.tree_recall >= 0) json["tree_recall"] = report.tree_recall;
  if (!report.plan.kept_of_layers.empty()) json["kept_of_layers"] = report.plan.kept_of_layers;
  if (report.validation_loss >= 0) json["validation_loss"] = finite(report.validation_loss);
  if (report.accuracy >= 0) json["accuracy"] = report.accuracy;
  return json.dump();
}

std::vector<Scalar> scalars_of(const std::string& line) {
  std::vector<Scalar> scalars;
  const auto json = nlohmann::ordered_json::parse(line);
  for (const auto& [name, value] : json.items()) {
    const bool number = value.is_number() || value.is_boolean();
    if (!number || name == "step" || name == "steps" || name == "time") continue;
    const double plain = value.is_boolean() ? (value.get<bool>() ? 1 : 0) : value.get<double>();
    scalars.push_back({name, plain});
  }
  return scalars;
}

}  // namespace tessera
