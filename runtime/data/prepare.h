#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "runtime/data/dataset.h"
#include "runtime/data/text_source.h"

namespace tessera {

struct PrepareOptions {
  std::vector<std::filesystem::path> inputs;  ///< see list_text_files
  std::filesystem::path output;               ///< made when it does not exist
  /// "byte", "train:VOCABULARY", or the path of a SentencePiece model file.
  std::string tokenizer = "byte";
  double validation = 0.02;  ///< share of the documents, in (0, 1)
  uint64_t seed = 1;         ///< of the split
  TextOptions text = {};
  bool overwrite = false;  ///< replace another data set in `output`
};

struct PrepareResult {
  DatasetDescription description;
  bool already_there = false;  ///< `output` held this very data set; nothing was written
};

/// Makes a data set from text. Every document is followed by an end-of-document token. Document i
/// goes to validation when a hash of (seed, i) falls below the share; when that leaves one split
/// empty, the last document goes there; when there is only one document, its tail does.
///
/// Safe to stop and to run again at any time: `output` holds either the finished data set of
/// before, or the new one. Memory: about 100 MB, plus 12 bytes per document, plus 20 times the
/// text (at most 32 MB of it are used) while a tokenizer is trained.
/// Uses one thread per core; the result does not depend on their number.
///
/// Throws Error: kUsage when an option or input is wrong, when there is no text in the inputs, or
/// when `output` holds a data set made from something else, or files that are not ours, and
/// `overwrite` is false; kBadData for a bad JSON line or tokenizer; kTryAgain while another
/// process prepares the same directory, and when the disk is full or fails.
PrepareResult prepare_dataset(const PrepareOptions& options);

/// Whether document `index` goes to validation.
bool is_validation(uint64_t seed, int64_t index, double share);

}  // namespace tessera
