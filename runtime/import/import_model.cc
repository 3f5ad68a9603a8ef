#include "runtime/import/import_model.h"

#include <algorithm>

#include "checkpoint/candidates.h"
#include "runtime/config/text_writer.h"
#include "runtime/config/train.pb.h"
#include "runtime/config/wording.h"
#include "runtime/data/dataset.h"
#include "runtime/import/hugging_face_config.h"
#include "runtime/import/import_plan.h"
#include "runtime/import/imported_state.h"
#include "runtime/import/state_in_pieces.h"
#include "runtime/train/model_options.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxConfig = 1 << 20;
constexpr int64_t kMaxTokenizer = int64_t{64} << 20;

std::string read_text_file(const fs::path& path, int64_t limit) {
  const File file = File::open(path);
  const int64_t size = file.size();
  if (size > limit) {
    throw Error(ExitCode::kBadData,
                concat(path.string(), " has ", size, " bytes, expected at most ", limit));
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.read_at(std::as_writable_bytes(std::span<char>(text.data(), text.size())), 0);
  return text;
}

HuggingFaceDescription read_config(const fs::path& source, ModelConfig& model) {
  std::error_code ignored;
  if (!fs::is_directory(source, ignored)) {
    throw Error(ExitCode::kUsage, concat(source.string(),
                                         " is no directory: give one that has "
                                         "config.json and safetensors files"));
  }
  const fs::path path = source / "config.json";
  if (!fs::exists(path, ignored)) {
    throw Error(ExitCode::kBadData, concat(path.string(),
                                           " does not exist: the model is not "
                                           "whole, or not of Hugging Face"));
  }
  return read_hugging_face_config(read_text_file(path, kMaxConfig), path.string(), model);
}

void check_agreement(const TrainConfig& config, const ModelConfig& theirs,
                     const ImportOptions& options) {
  const std::string path = (options.source / "config.json").string();
  std::vector<std::string> lines;
  for (const FieldProblem& problem : model_disagreements(config.model(), theirs, path)) {
    lines.push_back(concat(options.config_name, ": ", problem.field, " ", problem.what));
  }
  if (lines.empty()) return;
  throw Error(ExitCode::kBadData,
              concat(joined(lines), "\ntessera checkpoint import ", options.source.string(),
                     " --print-config prints a model that fits"));
}

void check_run_is_new(const fs::path& run) {
  const fs::path checkpoints = run / "checkpoints";
  if (list_checkpoints(checkpoints).empty()) return;
  throw Error(ExitCode::kUsage, concat(checkpoints.string(),
                                       " has checkpoints; choose another "
                                       "run directory with --run"));
}

struct TokenizerChoice {
  std::string model;
  std::string from;
};

// That of the data set, which training will use; else the model's own, when it is SentencePiece.
TokenizerChoice choose_tokenizer(const TrainConfig& config, const fs::path& source) {
  std::error_code ignored;
  const fs::path data = config.data().path();
  if (fs::exists(data, ignored)) return {load_tokenizer_model(data), data.string()};
  const fs::path own = source / "tokenizer.model";
  if (fs::exists(own, ignored)) {
    try {
      const std::string model = read_text_file(own, kMaxTokenizer);
      return {Tokenizer::from_model(model, own.string()).model(), own.string()};
    } catch (const Error& error) {
      if (error.code() != ExitCode::kBadData) throw;
    }
  }
  return {"", "bytes"};
}

std::string indented(const std::string& text) {
  std::string result;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size() - 1) + 1;
    result += "  " + text.substr(at, end - at);
    at = end;
  }
  return result;
}

}  // namespace

ImportReport import_model(const TrainConfig& config, const ImportOptions& options) {
  ModelConfig theirs;
  ImportReport report{.architecture = read_config(options.source, theirs).architecture};
  check_agreement(config, theirs, options);
  const ShardedSafetensors files(options.source);
  ImportPlan plan =
      plan_import(config.model(), value_dtype(config), files.tensors(), options.source.string());
  check_run_is_new(config.run_dir());
  const TokenizerChoice tokenizer = choose_tokenizer(config, options.source);
  report.tensors = std::ssize(files.tensors()) - std::ssize(plan.passed_over);
  report.files = static_cast<int64_t>(files.files());
  report.initialised = std::move(plan.initialised);
  report.passed_over = std::move(plan.passed_over);
  report.tokenizer = tokenizer.from;
  for (const ImportedParameter& one : plan.parameters) {
    report.parameters += one.parameter.shard.whole.elements();
  }
  ImportedState state(config, files, plan.parameters, options.piece_elements, tokenizer.model);
  const SaveReport saved = save_in_pieces(config, state);
  report.checkpoint = saved.path;
  report.bytes = saved.bytes;
  return report;
}

std::string suggested_model(const fs::path& source) {
  TrainConfig config;
  const HuggingFaceDescription description = read_config(source, *config.mutable_model());
  std::string text =
      concat("# The model in ", shown(source.string()), ", ", class_name(description.architecture),
             ".\n# Add model.attention: what each layer may skip.\n");
  if (description.positions > 0) {
    text +=
        concat("# It was trained for batch.sequence_length up to ", description.positions, ".\n");
  }
  return text + "model {\n" + indented(to_text(config.model())) + "}\n";
}

}  // namespace tessera
