#pragma once

#include <filesystem>
#include <functional>

#include "kernels/core/device.h"
#include "runtime/curriculum/window_scores.h"

namespace tessera {

/// What scoring windows by the loss of a model takes.
struct WindowScoring {
  std::filesystem::path checkpoint;  ///< or a run directory
  std::filesystem::path data;        ///< a data set; its training split is scored
  int64_t sequence_length = 0;       ///< tokens of a window; 0: as the run of the checkpoint
  std::function<void(int64_t done, int64_t all)> progress = {};  ///< windows
};

/// Mean loss of the tokens of each window, nats, attending as in the last step of the checkpoint's
/// run; 0 for a window without targets. Throws Error: as load_model and TokenDataset, and kBadData
/// when the data set was made with another tokenizer than the model's.
WindowScores score_by_loss(Stream& stream, const WindowScoring& options);

}  // namespace tessera
