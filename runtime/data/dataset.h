#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "runtime/data/answer_file.h"
#include "runtime/data/token_file.h"
#include "runtime/data/tokenizer.h"

namespace tessera {

/// A data set is a directory: train.bin/.idx, validation.bin/.idx, tokenizer.model (SentencePiece
/// only), train.answers and validation.answers (tasks only) and dataset.json, which is written
/// last: without it there is no data set.
inline constexpr const char* kTrainSplit = "train";
inline constexpr const char* kValidationSplit = "validation";

/// DatasetDescription::tokenizer of tokens that stand for no text.
inline constexpr const char* kNoTokenizer = "none";

struct SplitSize {
  int64_t documents = 0;
  int64_t tokens = 0;

  friend bool operator==(const SplitSize&, const SplitSize&) = default;
};

/// Of a data set whose samples ask something: only the answers are to be predicted.
struct TaskFacts {
  std::string kind = {};
  int64_t length = 0;              ///< tokens of each sample, which is a document
  int64_t train_entries = 0;       ///< of train.answers
  int64_t validation_entries = 0;  ///< of validation.answers

  friend bool operator==(const TaskFacts&, const TaskFacts&) = default;
};

/// The content of dataset.json. docs/data.md specifies it field by field.
struct DatasetDescription {
  /// Tokenizer::kind(), or kNoTokenizer.
  std::string tokenizer = "byte";
  int32_t vocabulary = 0;
  int32_t end_of_document = 0;
  SplitSize train = {};
  SplitSize validation = {};
  // Where it came from; all optional in the file.
  int64_t source_files = 0;
  int64_t source_documents = 0;
  int64_t source_bytes = 0;      ///< of text
  int64_t skipped_files = 0;     ///< binary or unreadable
  int64_t skipped_lines = 0;     ///< bad JSON lines
  std::string fingerprint = {};  ///< of everything that determines the data set
  std::optional<TaskFacts> task = {};

  friend bool operator==(const DatasetDescription&, const DatasetDescription&) = default;
};

/// Whether `directory` holds a finished data set.
bool has_dataset(const std::filesystem::path& directory);
/// Throws Error (kBadData) when there is no finished data set or its description is damaged.
DatasetDescription read_description(const std::filesystem::path& directory);
/// Finishes a data set: replaces dataset.json, durably and at once.
void write_description(const std::filesystem::path& directory, const DatasetDescription& content);
/// Takes the mark of a finished data set away, durably, before its files are replaced.
void remove_description(const std::filesystem::path& directory);

/// The tokenizer that made the data set. Throws Error (kBadData), also when it has none.
Tokenizer load_tokenizer(const std::filesystem::path& directory);
/// Tokenizer::model() of it, checked likewise; empty when the data set has no tokenizer.
std::string load_tokenizer_model(const std::filesystem::path& directory);
/// Where the SentencePiece model of a data set lies.
std::filesystem::path tokenizer_path(const std::filesystem::path& directory);

/// The tokens of one split.
class TokenDataset {
 public:
  /// `split` is kTrainSplit or kValidationSplit. `vocabulary` is the model's; it may be larger
  /// than the tokenizer's, not smaller. Throws Error (kBadData) when the directory holds no
  /// finished data set, needs a larger vocabulary, or is damaged.
  TokenDataset(const std::filesystem::path& directory, const std::string& split,
               int64_t vocabulary);

  const std::string& name() const { return name_; }  ///< "DIRECTORY/train"
  const DatasetDescription& description() const { return description_; }
  int64_t tokens() const { return file_.tokens(); }
  int64_t documents() const { return file_.documents(); }
  std::span<const int64_t> document_starts() const { return file_.document_starts(); }
  /// Whether only the answers are to be predicted.
  bool has_answers() const { return description_.task.has_value(); }
  /// Ascending; empty without a task. 16 bytes of memory each.
  std::span<const Answer> answers() const { return answers_; }
  /// As TokenFile::read, against the tokenizer's vocabulary.
  void read(int64_t first, std::span<int32_t> out) const;
  void will_need(int64_t first, int64_t count) const { file_.will_need(first, count); }

 private:
  std::string name_;
  DatasetDescription description_;
  TokenFile file_;
  std::vector<Answer> answers_;
};

}  // namespace tessera
