#include "runtime/data/dataset.h"

#include <limits>
#include <nlohmann/json.hpp>

namespace tessera {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "tessera data set";
// A data set with answers is version 2: a reader of version 1 would train on every token of it.
constexpr int64_t kTextVersion = 1;
constexpr int64_t kTaskVersion = 2;

std::filesystem::path description_path(const std::filesystem::path& directory) {
  return directory / "dataset.json";
}

/// Reads fields of a JSON document and names the wrong one: "tokenizer.vocabulary".
class Fields {
 public:
  Fields(const Json& document, const std::filesystem::path& path)
      : document_(document), path_(path) {}

  int64_t number(const char* pointer, int64_t least, int64_t most) const {
    const Json& value = at(pointer);
    const bool fits = value.is_number_integer() && value >= least && value <= most;
    if (!fits) {
      fail(pointer,
           concat("is ", value.dump(), ", expected a whole number from ", least, " to ", most));
    }
    return value.get<int64_t>();
  }
  int64_t count(const char* pointer) const {
    return number(pointer, 0, std::numeric_limits<int64_t>::max());
  }
  int64_t count_or_zero(const char* pointer) const {
    return document_.contains(Json::json_pointer(pointer)) ? count(pointer) : 0;
  }
  std::string text(const char* pointer) const {
    const Json& value = at(pointer);
    if (!value.is_string()) fail(pointer, concat("is ", value.dump(), ", expected text"));
    return value.get<std::string>();
  }
  std::string text_or_empty(const char* pointer) const {
    return document_.contains(Json::json_pointer(pointer)) ? text(pointer) : std::string();
  }
  [[noreturn]] void fail(const char* pointer, const std::string& problem) const {
    throw Error(ExitCode::kBadData, concat(path_.string(), ": ", pointer, " ", problem));
  }

 private:
  const Json& at(const char* pointer) const {
    if (!document_.contains(Json::json_pointer(pointer))) fail(pointer, "is missing");
    return document_.at(Json::json_pointer(pointer));
  }

  const Json& document_;
  const std::filesystem::path& path_;
};

DatasetDescription parse(const Json& document, const std::filesystem::path& path) {
  const Fields fields(document, path);
  if (fields.text("/format") != kFormat) {
    fields.fail("/format",
                concat("is \"", fields.text("/format"), "\", expected \"", kFormat, "\""));
  }
  const int64_t version = fields.count("/version");
  if (version != kTextVersion && version != kTaskVersion) {
    fields.fail("/version",
                concat("is ", version, ", expected ", kTextVersion, " or ", kTaskVersion,
                       "; prepare the data set again with this version of tessera"));
  }
  constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();
  DatasetDescription content;
  content.tokenizer = fields.text("/tokenizer/kind");
  if (content.tokenizer != "byte" && content.tokenizer != "sentencepiece" &&
      content.tokenizer != kNoTokenizer) {
    fields.fail("/tokenizer/kind",
                concat("is \"", content.tokenizer, "\", expected \"byte\", \"sentencepiece\" or \"",
                       kNoTokenizer, "\""));
  }
  content.vocabulary = static_cast<int32_t>(fields.number("/tokenizer/vocabulary", 1, kMostTokens));
  content.end_of_document =
      static_cast<int32_t>(fields.number("/tokenizer/end_of_document", 0, content.vocabulary - 1));
  content.train = {fields.count("/splits/train/documents"), fields.count("/splits/train/tokens")};
  content.validation = {fields.count("/splits/validation/documents"),
                        fields.count("/splits/validation/tokens")};
  content.source_files = fields.count_or_zero("/sources/files");
  content.source_documents = fields.count_or_zero("/sources/documents");
  content.source_bytes = fields.count_or_zero("/sources/bytes");
  content.skipped_files = fields.count_or_zero("/sources/skipped_files");
  content.skipped_lines = fields.count_or_zero("/sources/skipped_lines");
  content.fingerprint = fields.text_or_empty("/fingerprint");
  if (version == kTaskVersion) {
    content.task = {.kind = fields.text("/task/kind"),
                    .length = fields.number("/task/length", 1, kMostTokens),
                    .train_entries = fields.count("/task/entries/train"),
                    .validation_entries = fields.count("/task/entries/validation")};
  }
  return content;
}

}  // namespace

bool has_dataset(const std::filesystem::path& directory) {
  std::error_code ignored;
  return std::filesystem::exists(description_path(directory), ignored);
}

DatasetDescription read_description(const std::filesystem::path& directory) {
  const std::filesystem::path path = description_path(directory);
  if (!has_dataset(directory)) {
    throw Error(ExitCode::kBadData,
                concat(directory.string(),
                       " holds no finished data set (there is no dataset.json): "
                       "make one with tessera data prepare --input PATH --output ",
                       directory.string()));
  }
  const std::string text = read_file(path, ExitCode::kBadData);
  try {
    return parse(Json::parse(text), path);
  } catch (const Json::exception& problem) {
    throw Error(ExitCode::kBadData,
                concat(path.string(), ": not the description of a data set: ", problem.what()));
  }
}

void write_description(const std::filesystem::path& directory, const DatasetDescription& content) {
  const auto size = [](const SplitSize& split) {
    return Json{{"documents", split.documents}, {"tokens", split.tokens}};
  };
  Json document{
      {"format", kFormat},
      {"version", content.task ? kTaskVersion : kTextVersion},
      {"tokenizer",
       {{"kind", content.tokenizer},
        {"vocabulary", content.vocabulary},
        {"end_of_document", content.end_of_document}}},
      {"splits", {{"train", size(content.train)}, {"validation", size(content.validation)}}},
      {"sources",
       {{"files", content.source_files},
        {"documents", content.source_documents},
        {"bytes", content.source_bytes},
        {"skipped_files", content.skipped_files},
        {"skipped_lines", content.skipped_lines}}},
      {"fingerprint", content.fingerprint}};
  if (const auto& task = content.task) {
    document["task"] = {
        {"kind", task->kind},
        {"length", task->length},
        {"entries", {{"train", task->train_entries}, {"validation", task->validation_entries}}}};
  }
  write_file(description_path(directory), document.dump(2) + "\n");
}

void remove_description(const std::filesystem::path& directory) {
  remove_file(description_path(directory));
}

std::filesystem::path tokenizer_path(const std::filesystem::path& directory) {
  return directory / "tokenizer.model";
}

Tokenizer load_tokenizer(const std::filesystem::path& directory) {
  const DatasetDescription content = read_description(directory);
  const std::filesystem::path path = tokenizer_path(directory);
  if (content.tokenizer == kNoTokenizer) {
    throw Error(ExitCode::kBadData, concat(directory.string(),
                                           " has no tokenizer: its tokens stand for no text; use "
                                           "a data set of tessera data prepare"));
  }
  Tokenizer tokenizer;
  if (content.tokenizer == "sentencepiece") {
    tokenizer = Tokenizer::from_model(read_file(path, ExitCode::kBadData), path.string());
  }
  if (tokenizer.vocabulary() != content.vocabulary ||
      tokenizer.end_of_document() != content.end_of_document) {
    throw Error(ExitCode::kBadData,
                concat(directory.string(), ": the ", content.tokenizer, " tokenizer has ",
                       tokenizer.vocabulary(), " tokens and ends documents with ",
                       tokenizer.end_of_document(), ", but dataset.json says ", content.vocabulary,
                       " and ", content.end_of_document, "; prepare the data set again"));
  }
  return tokenizer;
}

std::string load_tokenizer_model(const std::filesystem::path& directory) {
  if (read_description(directory).tokenizer == kNoTokenizer) return {};
  return load_tokenizer(directory).model();
}

TokenDataset::TokenDataset(const std::filesystem::path& directory, const std::string& split,
                           int64_t vocabulary)
    : name_((directory / split).string()),
      description_(read_description(directory)),
      file_(directory / split) {
  CHECK(split == kTrainSplit || split == kValidationSplit, "dataset: split is ", split,
        ", expected train or validation");
  if (vocabulary < description_.vocabulary) {
    throw Error(ExitCode::kBadData, concat(name_, ": the data set has ", description_.vocabulary,
                                           " tokens, but the model's vocabulary is ", vocabulary,
                                           ": make the model's vocabulary at least as large"));
  }
  const SplitSize expected = split == kTrainSplit ? description_.train : description_.validation;
  if (const SplitSize found{documents(), tokens()}; found != expected) {
    throw Error(
        ExitCode::kBadData,
        concat(name_, ".idx: byte 18: the index holds ", found.documents, " documents with ",
               found.tokens, " tokens, but dataset.json says ", expected.documents, " and ",
               expected.tokens, "; prepare the data set again"));
  }
  if (!description_.task) return;
  answers_ = read_answers(directory / split, tokens());
  const TaskFacts& task = *description_.task;
  const int64_t entries = split == kTrainSplit ? task.train_entries : task.validation_entries;
  if (std::ssize(answers_) != entries) {
    throw Error(ExitCode::kBadData,
                concat(answer_path(name_).string(), ": byte 16: the file holds ", answers_.size(),
                       " entries, but dataset.json says ", entries, "; make the data set again"));
  }
}

void TokenDataset::read(int64_t first, std::span<int32_t> out) const {
  file_.read(first, description_.vocabulary, out);
}

}  // namespace tessera
