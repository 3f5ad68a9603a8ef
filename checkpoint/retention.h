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

/// A valid checkpoint, as retention sees it.
struct Kept {
  CheckpointId id;
  bool finite = true;
};

/// Which of `newest_first`, the valid checkpoints of a run, may go: true for those. Never one are
/// the newest, and the newest whose weights are finite: a run that has gone wrong does not push out
/// the last state that it could go back to.
std::vector<bool> expendable(std::span<const Kept> newest_first, const RetentionPolicy& policy);

/// Moves checkpoint `name` into `folder`: .bad, or .trash for deletion. Durable when it returns.
/// What is deleted is always moved first: a directory with a marker is complete at any moment,
/// whenever the process dies.
void move_checkpoint(const Directory& checkpoints, const std::string& name, const char* folder);

/// Unlinks what is in .trash. Trouble is logged, not thrown.
void empty_trash(const Directory& checkpoints);

}  // namespace tessera
