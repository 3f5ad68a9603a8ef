#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace tessera {

/// What a single field of TrainConfig may hold, whatever the others hold.
struct FieldRule {
  enum class Ends : uint8_t { kClosed, kAboveLeast, kBelowMost };  ///< whether the ends are allowed
  const char* path;                                                ///< full name, "model.layers"
  double least;
  double most;
  /// Value of a field that was not set. None: required, or it follows from others (resolve.cc).
  std::optional<double> standard = {};
  Ends ends = Ends::kClosed;
};

/// One rule per number and truth value of TrainConfig, in the order of the file. Upper limits are
/// far beyond use; together with validate() they keep every product of sizes within 64 bits.
std::span<const FieldRule> field_rules();

}  // namespace tessera
