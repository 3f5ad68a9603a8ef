#pragma once

#include <filesystem>
#include <string>

#include "kernels/core/device.h"

namespace tessera {

/// What `tessera score` is asked for.
struct ScoreOptions {
  std::filesystem::path checkpoint;  ///< or a run directory
  /// Safetensors: `tokens` i32 [batch, time]; optionally `targets` i32 of the same shape, the token
  /// to predict at each position, negative for none (without it, the next token of the row), and
  /// `starts` i32 [segments + 1], where attention starts anew on the axis of batch * time tokens
  /// (without it, at each row).
  std::filesystem::path input;
  std::filesystem::path output;
  std::string precision = "checkpoint";  ///< as LoadOptions::precision
  bool gradients = false;
  int64_t step = 0;  ///< attend as in this step of the run; 0: as in the checkpoint's last one
};

/// What was computed, for people.
struct ScoreResult {
  double loss = 0;       ///< mean over the positions with a target, nats
  double auxiliary = 0;  ///< weighted losses of gates and routers
  int64_t targets = 0;
};

/// Runs the training forward (and backward) on given tokens and writes, as safetensors:
///   logits [batch, time, vocabulary] f32;  losses [batch, time] f32, nats, 0 without a target;
///   loss [1] f32, their mean over the positions with a target;
///   auxiliary [5] f32: KL, entropy and z-loss of the gates, balance and z-loss of the routers;
///   with gradients, gradient.NAME f32 of loss + the sum of auxiliary, for each parameter, and
///   parameter.NAME, its value as it was used.
/// Throws Error: kUsage for what the arguments ask, kBadData for what the files hold.
ScoreResult score(Stream& stream, const ScoreOptions& options);

}  // namespace tessera
