#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/file_io.h"

namespace tessera {

struct RetentionPolicy {
  int64_t keep_last = 3;   ///< newest checkpoints that stay; at least 1
  int64_t keep_every = 0;  ///< steps that are a multiple of this stay for ever; 0: none
};

/// Which of `newest_first`, the valid checkpoints of a run, may go: true for those. The newest
/// never is one.
std::vector<bool> expendable(std::span<const CheckpointId> newest_first,
                             const RetentionPolicy& policy);

/// Deletes checkpoint `name`, or moves it into `folder` (.bad). First renames, then syncs, then
/// unlinks: a directory with a marker is complete at any moment, whenever the process dies.
void delete_checkpoint(const Directory& checkpoints, const std::string& name);
void move_checkpoint(const Directory& checkpoints, const std::string& name, const char* folder);

/// Unlinks what earlier deletions have left in .trash. Trouble is logged, not thrown.
void empty_trash(const Directory& checkpoints);

}  // namespace tessera
