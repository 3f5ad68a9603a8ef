#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "runtime/data/data_loader.h"

namespace tessera {

/// How hard the windows of a training split are: one number each, in the order of the split, the
/// easiest the least.
struct WindowScores {
  std::string by;               ///< "loss", "length" or "rarity"
  int64_t sequence_length = 0;  ///< tokens of a window
  int64_t tokens = 0;           ///< of the split
  std::vector<float> scores;    ///< [floor((tokens - 1) / sequence_length)]
};

/// Mean over the tokens of a window of the length of their document, in tokens.
WindowScores score_by_length(const TokenDataset& dataset, int64_t sequence_length);
/// Mean over the tokens of a window of -ln of their share of the whole split.
WindowScores score_by_rarity(const TokenDataset& dataset, int64_t sequence_length);

/// As safetensors: `scores` f32 [windows]; by, sequence_length and tokens as metadata.
void write_scores(const std::filesystem::path& path, const WindowScores& scores);
/// Throws Error: kUsage when there is no such file, kBadData when it holds something else.
WindowScores read_scores(const std::filesystem::path& path);

/// The windows of `loader` from the easiest to the hardest; of equal ones the earlier first. A
/// window of several scored ones counts as their mean. `path` is what messages call the scores.
/// Throws Error(kBadData) when they are of other data or do not divide its windows.
std::vector<int64_t> easiest_first(const WindowScores& scores, const std::filesystem::path& path,
                                   const TokenDataset& dataset, const DataLoader& loader);

}  // namespace tessera
