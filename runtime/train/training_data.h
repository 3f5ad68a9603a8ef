#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

#include "runtime/data/data_mixture.h"
#include "runtime/train/step_plan.h"

namespace tessera {

class TrainConfig;

/// A split of a data set and what cuts it into samples.
struct DataSplit {
  /// `split`: kTrainSplit, shuffled, or kValidationSplit, in order. Throws Error: as
  /// TokenDataset and DataLoader, and kUsage when samples of a task do not fit the sequences of
  /// some step.
  DataSplit(const TrainConfig& config, const std::filesystem::path& directory, const char* split);

  TokenDataset tokens;
  DataLoader loader;
};

/// The global batch of a step of `plan` that begins at `position`.
DataMixture::Taken take_batch(const DataMixture& data, const DataPosition& position,
                              const TrainConfig& config, const StepPlan& plan);

/// GlobalBatch::FillRows of those windows, in rows of `length` tokens.
std::function<void(int64_t first, int64_t rows, MicroBatch& out)> rows_of(
    std::vector<DataWindow> windows, int64_t length);

/// Everything that a configuration trains on: data.path, as source "data", and curriculum.sources,
/// with their scores.
class TrainingData {
 public:
  /// Throws Error: as DataSplit, and kBadData when scores cannot be used, or when a source has
  /// another tokenizer than data.path; a source of a task has none.
  explicit TrainingData(const TrainConfig& config);

  const DataMixture& mixture() const { return mixture_; }

 private:
  std::vector<std::unique_ptr<DataSplit>> splits_;
  DataMixture mixture_;
};

}  // namespace tessera
