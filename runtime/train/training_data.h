#pragma once

#include <memory>
#include <vector>

#include "runtime/data/data_mixture.h"

namespace tessera {

class TrainConfig;

/// A split of a data set and what cuts it into samples.
struct DataSplit {
  /// `split`: kTrainSplit, shuffled, or kValidationSplit, in order.
  DataSplit(const TrainConfig& config, const std::filesystem::path& directory, const char* split);

  TokenDataset tokens;
  DataLoader loader;
};

/// Everything that a configuration trains on: data.path, as source "data", and curriculum.sources,
/// with their scores.
class TrainingData {
 public:
  /// Throws Error(kBadData) when a data set or its scores cannot be used, or when a source has
  /// another tokenizer than data.path.
  explicit TrainingData(const TrainConfig& config);

  const DataMixture& mixture() const { return mixture_; }

 private:
  std::vector<std::unique_ptr<DataSplit>> splits_;
  DataMixture mixture_;
};

}  // namespace tessera
