#pragma once

#include <string>
#include <vector>

#include "kernels/core/tensor_view.h"

namespace tessera {

class ModelConfig;
class TrainConfig;

/// A model under the names that Hugging Face's transformers give its tensors. Values are never
/// changed and rows never permuted: our RoPE is half-split as theirs, our norms multiply by their
/// weight as theirs do. Joined matrices are taken apart: gate_up into gate and up, the experts one
/// by one.

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

/// "llama": what config.json calls model_type.
const char* type_name(HuggingFaceArchitecture architecture);

/// Whether some layer has experts.
bool has_experts(const ModelConfig& model);

/// Whether a parameter is of a sparsity gate: without gates attention is dense.
bool is_gate_parameter(const std::string& name);

/// One of the tensors that a parameter becomes.
struct HuggingFacePart {
  std::string name;
  Shape shape;
  int64_t first = 0;  ///< number of its first element in the parameter, row-major
};

/// The tensors that a parameter of `shape` becomes: end to end they are its elements, so the same
/// list takes it apart and puts it together. Gates become model.layers.N.self_attn.tessera_gate.*.
std::vector<HuggingFacePart> hugging_face_parts(const ModelConfig& model,
                                                const std::string& parameter, const Shape& shape);

/// The text of config.json. `config` is resolved; `dtype` is that of the matrices.
std::string hugging_face_config(const TrainConfig& config, DType dtype);

}  // namespace tessera
