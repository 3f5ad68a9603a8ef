#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "checkpoint/file_io.h"

namespace tessera {

/// Who may commit. Each incarnation of a run makes one file fence/eNNNNNN with O_EXCL, a
/// compare-and-swap on every file system; only the highest may commit. A job that the scheduler
/// took for dead, and that still writes, loses by this at its next commit.
struct Fence {
  int64_t epoch = 0;
  std::string run_uuid;  ///< 32 hexadecimal digits, the same for all incarnations of a run
};

/// Starts the next incarnation: above all fences and above `newest_epoch`. The run's uuid is taken
/// over from the fences; `fallback_uuid` (of a checkpoint, or empty) is used when they are lost.
Fence raise_fence(const Directory& checkpoints, int64_t newest_epoch,
                  const std::string& fallback_uuid, const std::string& note);

/// The newest incarnation, when it is newer than `fence`.
std::optional<int64_t> newer_incarnation(const Directory& checkpoints, const Fence& fence);

/// Throws kTryAgain when there is a newer incarnation.
void check_fence(const Directory& checkpoints, const Fence& fence);

}  // namespace tessera
