#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/config/validate.h"
#include "runtime/export/hugging_face.h"

namespace tessera {

class ModelConfig;

/// What a config.json says besides the ModelConfig.
struct HuggingFaceDescription {
  HuggingFaceArchitecture architecture = HuggingFaceArchitecture::kLlama;
  int64_t positions = 0;  ///< max_position_embeddings; 0 when it does not say
};

/// Reads the text of a config.json of at most 1 MiB into `model`: all fields that it decides, and
/// no others. Knows model_type llama, mistral, qwen3, mixtral, qwen3_moe and tessera. Throws
/// Error(kBadData) with one line for everything that is missing, of the wrong kind, or that our
/// model cannot compute (scaled rotary positions, biases, sliding windows, other activations than
/// SiLU, quantized weights, ...), each with the name of its key; lines begin with `name`.
HuggingFaceDescription read_hugging_face_config(std::string_view text, const std::string& name,
                                                ModelConfig& model);

/// Where a resolved configuration is another model than the one `theirs` was read from; `name` is
/// that of the config.json. Fields that do not change what a trained model computes (init_std,
/// losses of the router) may differ, and so may those of sparsity. Routers that compute the same
/// are equal.
std::vector<FieldProblem> model_disagreements(const ModelConfig& ours, const ModelConfig& theirs,
                                              const std::string& name);

}  // namespace tessera
