#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/core/device.h"

namespace tessera {

struct TaskScoreOptions {
  std::filesystem::path checkpoint;      ///< or a run directory: then its newest valid checkpoint
  std::filesystem::path data;            ///< of tessera data task
  std::string precision = "checkpoint";  ///< as LoadOptions::precision
  int64_t samples = 0;                   ///< first so many of the validation split; 0: all
  int64_t step = 0;  ///< attend as in this step of the run; 0: as in the checkpoint's last one
};

/// What a model makes of a task's validation samples.
struct TaskScores {
  std::string kind = {};
  int64_t length = 0;  ///< tokens of a sample
  int64_t samples = 0;
  int64_t answers = 0;
  double accuracy = 0;      ///< share of the answers that no other token is more probable than
  int64_t window = 0;       ///< W of local groups in that step, tokens
  int64_t far_answers = 0;  ///< with a source that local groups do not see at full sparsity
  double far_accuracy = 0;  ///< of these; 0 when there are none
  int64_t kept_blocks = 0;  ///< k
  double kept_share = 1;    ///< of the blocks that a token of a global group could visit; 1: all
  double asking_kept_share = 1;  ///< the same of the asking tokens alone, which see the most blocks
  /// Of each layer: share of the sources whose block the asking token sees in a global group, be it
  /// forced or chosen. Empty where nothing is chosen: without a gate, or while it rests.
  std::vector<double> block_recall = {};
};

/// Runs the model over the samples, each for itself. Throws Error: kUsage for what the options ask,
/// kBadData for what the files hold.
TaskScores task_scores(Stream& stream, const TaskScoreOptions& options);
/// As one JSON object.
std::string to_json(const TaskScores& scores);

}  // namespace tessera
