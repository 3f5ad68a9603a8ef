#include "runtime/train/progress.h"

#include <nlohmann/json.hpp>

#include "kernels/core/error.h"

namespace tessera {

namespace {

constexpr const char* kWayOut = "; resume from another checkpoint";

int64_t count_in(const nlohmann::json& json, const std::string& name, bool required) {
  if (!required && json.is_object() && !json.contains(name)) return 0;
  const bool usable = json.is_object() && json.contains(name) && json[name].is_number_integer() &&
                      json[name].get<int64_t>() >= 0;
  if (!usable) {
    throw Error(ExitCode::kBadData, concat("progress of the run in the checkpoint: '", name,
                                           "' is missing or is no number", kWayOut));
  }
  return json[name].get<int64_t>();
}

DataPosition data_in(const nlohmann::json& json, int64_t samples) {
  DataPosition data{.samples = samples};
  if (!json.contains("data")) return data;
  const nlohmann::json& written = json["data"];
  data.sequence_length = count_in(written, "sequence_length", /*required=*/true);
  if (!written.contains("tokens") || !written["tokens"].is_object()) {
    throw Error(ExitCode::kBadData,
                concat("progress of the run in the checkpoint: 'tokens' is missing or holds no "
                       "sources",
                       kWayOut));
  }
  for (const auto& source : written["tokens"].items()) {
    data.tokens[source.key()] = count_in(written["tokens"], source.key(), /*required=*/true);
  }
  return data;
}

}  // namespace

std::string to_text(const RunProgress& progress) {
  nlohmann::ordered_json json{{"step", progress.step},
                              {"updates", progress.updates},
                              {"consumed_samples", progress.data.samples},
                              {"consumed_tokens", progress.consumed_tokens},
                              {"held_steps", progress.held_steps}};
  nlohmann::ordered_json tokens = nlohmann::ordered_json::object();
  for (const auto& [source, count] : progress.data.tokens) tokens[source] = count;
  json["data"] = {{"sequence_length", progress.data.sequence_length}, {"tokens", tokens}};
  return json.dump();
}

RunProgress parse_progress(std::string_view text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  RunProgress progress{.step = count_in(json, "step", /*required=*/true),
                       .updates = count_in(json, "updates", /*required=*/true),
                       .consumed_tokens = count_in(json, "consumed_tokens", /*required=*/true),
                       .held_steps = count_in(json, "held_steps", /*required=*/false)};
  progress.data = data_in(json, count_in(json, "consumed_samples", /*required=*/true));
  return progress;
}

}  // namespace tessera
