#pragma once

#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "model/whole_parameters.h"

namespace tessera {

class ModelConfig;
class TrainConfig;

/// A trained model under the names that Hugging Face's transformers give its tensors. Values are
/// never changed and rows never permuted: our RoPE is half-split as theirs, our norms multiply by
/// their weight as theirs do. Joined matrices are taken apart: gate_up into gate and up, the
/// experts one by one.

enum class HuggingFaceArchitecture {
  kLlama,     ///< every layer dense
  kQwen3,     ///< every layer dense, qk_norm
  kMixtral,   ///< experts in every layer, their weights sum to 1
  kQwen3Moe,  ///< experts, qk_norm; the first layers may be dense
  kTessera,   ///< none of these: Qwen3-MoE's names, and further tensors for the rest
};

/// The one that computes the same function as a model that attends densely, which is what a model
/// of ours computes in the dense stage. Softmax over the chosen logits and softmax divided by the
/// sum over the chosen are the same function.
HuggingFaceArchitecture hugging_face_architecture(const ModelConfig& model);

/// Why it is kTessera: "attention has an output gate"; empty when it is not.
std::string hugging_face_obstacle(const ModelConfig& model);

/// "LlamaForCausalLM".
const char* class_name(HuggingFaceArchitecture architecture);

/// Whether a parameter is of a sparsity gate: without gates attention is dense.
bool is_gate_parameter(const std::string& name);

/// Every tensor of the model as a view of `values`. Parameters of gates only with `gates`, as
/// model.layers.N.self_attn.tessera_gate.*. A tied head is not repeated. Routers are f32 whatever
/// the precision of the rest.
std::vector<SafetensorsTensor> hugging_face_tensors(const ModelConfig& model,
                                                    const WholeParameters& values, bool gates);

/// The text of config.json. `config` is resolved; `dtype` is that of the matrices.
std::string hugging_face_config(const TrainConfig& config, DType dtype);

}  // namespace tessera
