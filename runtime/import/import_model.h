#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "runtime/export/hugging_face.h"

namespace tessera {

class TrainConfig;

struct ImportOptions {
  std::filesystem::path source;  ///< directory with config.json and safetensors
  std::string config_name;       ///< what messages call the configuration
  /// Elements that are converted at a time: memory is 10 bytes for each.
  int64_t piece_elements = int64_t{1} << 26;
};

struct ImportReport {
  HuggingFaceArchitecture architecture = HuggingFaceArchitecture::kLlama;
  int64_t tensors = 0;  ///< read
  int64_t files = 0;    ///< of tensors
  int64_t parameters = 0;
  std::vector<std::string> initialised = {};  ///< parameters that the files do not have
  std::vector<std::string> passed_over = {};  ///< tensors that hold nothing of their own
  std::string tokenizer = {};                 ///< where text for `generate` comes from
  std::filesystem::path checkpoint = {};
  int64_t bytes = 0;  ///< of it
};

/// Makes step 0 of a run from a model of Hugging Face: a checkpoint in config.run_dir, from which
/// training goes on on any mesh. `config` is resolved, its mesh complete. Master weights are the
/// files' values, exactly; bf16 parameters are rounded to nearest even from them; moments are 0.
/// What the files do not have (gates) begins as in a new run with config.seed.
/// Nothing is written before configuration and files agree. Throws Error: kUsage when the run has
/// checkpoints, kBadData with everything that does not fit, kTryAgain for trouble of the storage.
ImportReport import_model(const TrainConfig& config, const ImportOptions& options);

/// The `model` part of a configuration for the model in `source`, as text that parses.
std::string suggested_model(const std::filesystem::path& source);

}  // namespace tessera
