#include "runtime/train/progress.h"

#include <nlohmann/json.hpp>

#include "kernels/core/error.h"

namespace tessera {

std::string to_text(const RunProgress& progress) {
  const nlohmann::ordered_json json{{"step", progress.step},
                                    {"updates", progress.updates},
                                    {"consumed_samples", progress.consumed_samples},
                                    {"consumed_tokens", progress.consumed_tokens}};
  return json.dump();
}

RunProgress parse_progress(std::string_view text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto number = [&](const char* name) {
    const bool usable = json.is_object() && json.contains(name) && json[name].is_number_integer() &&
                        json[name].get<int64_t>() >= 0;
    if (!usable) {
      throw Error(ExitCode::kBadData,
                  concat("progress of the run in the checkpoint: '", name,
                         "' is missing or is no number; resume from another checkpoint"));
    }
    return json[name].get<int64_t>();
  };
  return {.step = number("step"),
          .updates = number("updates"),
          .consumed_samples = number("consumed_samples"),
          .consumed_tokens = number("consumed_tokens")};
}

}  // namespace tessera
