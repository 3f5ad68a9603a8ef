#include "runtime/export/hugging_face.h"

#include <map>
#include <nlohmann/json.hpp>

#include "model/model.pb.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

using Architecture = HuggingFaceArchitecture;

// Of a layer's parameters those that are one tensor there, too: what follows "model.layers.N.".
const std::map<std::string, std::string>& layer_names() {
  static const std::map<std::string, std::string> names{
      {"attention_norm.weight", "input_layernorm.weight"},
      {"feed_forward_norm.weight", "post_attention_layernorm.weight"},
      {"attention.query.weight", "self_attn.q_proj.weight"},
      {"attention.key.weight", "self_attn.k_proj.weight"},
      {"attention.value.weight", "self_attn.v_proj.weight"},
      {"attention.out.weight", "self_attn.o_proj.weight"},
      {"attention.query_norm.weight", "self_attn.q_norm.weight"},
      {"attention.key_norm.weight", "self_attn.k_norm.weight"},
      {"mlp.down.weight", "mlp.down_proj.weight"},
      {"moe.router.weight", "mlp.gate.weight"},
      // Only of kTessera: the names that other models use, where there is one.
      {"attention.output_gate.weight", "self_attn.tessera_output_gate.weight"},
      {"attention.sink_logit", "self_attn.sinks"},
      {"moe.router.bias", "mlp.gate.e_score_correction_bias"},
      {"moe.shared.down.weight", "mlp.shared_experts.down_proj.weight"},
  };
  return names;
}

constexpr const char* kGate = "attention.gate.";

// Lists the tensors of one parameter, in the order of its elements.
class PartList {
 public:
  PartList(std::string layer, bool mixtral) : layer_(std::move(layer)), mixtral_(mixtral) {}

  std::vector<HuggingFacePart> of(const std::string& name, const Shape& shape) {
    const auto same = layer_names().find(name);
    if (name.starts_with(kGate)) {
      add("self_attn.tessera_gate." + name.substr(std::string(kGate).size()), shape);
    } else if (name == "mlp.gate_up.weight") {
      add_halves("mlp.gate_proj", "mlp.up_proj", shape);
    } else if (name == "moe.shared.gate_up.weight") {
      add_halves("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", shape);
    } else if (name.starts_with("moe.experts.")) {
      add_experts(name, shape);
    } else if (name == "moe.router.weight" && mixtral_) {
      add("block_sparse_moe.gate.weight", shape);
    } else {
      CHECK(same != layer_names().end(), "export: parameter ", layer_, name, " has no name");
      add(same->second, shape);
    }
    return std::move(parts_);
  }

 private:
  void add(const std::string& name, const Shape& shape) {
    parts_.push_back({.name = "model." + layer_ + name, .shape = shape, .first = next_});
    next_ += shape.elements();
  }

  // `both` is two matrices, one above the other.
  void add_halves(const std::string& first, const std::string& second, const Shape& both) {
    add(first + ".weight", both.with(0, both[0] / 2));
    add(second + ".weight", both.with(0, both[0] / 2));
  }

  void add_experts(const std::string& name, const Shape& all) {
    const Shape one{all[1], all[2]};
    const std::string prefix = mixtral_ ? "block_sparse_moe.experts." : "mlp.experts.";
    for (int64_t expert = 0; expert < all[0]; ++expert) {
      const std::string of = concat(prefix, expert, ".");
      if (name == "moe.experts.gate_up.weight") {
        add_halves(of + (mixtral_ ? "w1" : "gate_proj"), of + (mixtral_ ? "w3" : "up_proj"), one);
      } else {
        CHECK(name == "moe.experts.down.weight", "export: parameter ", layer_, name,
              " has no name");
        add(of + (mixtral_ ? "w2.weight" : "down_proj.weight"), one);
      }
    }
  }

  std::string layer_;  // "layers.3."
  bool mixtral_;
  int64_t next_ = 0;
  std::vector<HuggingFacePart> parts_;
};

void describe_experts(const MoeConfig& moe, Architecture architecture, nlohmann::json& json) {
  json["num_experts_per_tok"] = moe.experts_per_token();
  json["router_aux_loss_coef"] = moe.balance_loss();
  json["output_router_logits"] = false;
  if (architecture == Architecture::kMixtral) {
    json["intermediate_size"] = moe.intermediate();
    json["num_local_experts"] = moe.experts();
    json["sliding_window"] = nullptr;
    return;
  }
  json["num_experts"] = moe.experts();
  json["moe_intermediate_size"] = moe.intermediate();
  json["norm_topk_prob"] = moe.router() != MoeConfig::SOFTMAX;
  json["decoder_sparse_step"] = 1;
  json["mlp_only_layers"] = nlohmann::json::array();
  for (int layer = 0; layer < moe.dense_layers(); ++layer) json["mlp_only_layers"].push_back(layer);
}

void describe_tessera(const ModelConfig& model, nlohmann::json& json) {
  json["qk_norm"] = model.qk_norm();
  json["output_gate"] = model.output_gate();
  json["smear_tokens"] = model.smear_tokens();
  json["sink_logit"] = model.attention().sink_logit();
  if (!has_experts(model)) return;
  json["balance_bias_rate"] = model.moe().balance_bias_rate();
  json["router_mode"] = MoeConfig::RouterMode_Name(model.moe().router());
  json["routed_scaling_factor"] = model.moe().router_scale();
  json["n_shared_experts"] = model.moe().shared_experts();
}

}  // namespace

bool has_experts(const ModelConfig& model) {
  return model.has_moe() && model.moe().dense_layers() < model.layers();
}

std::string hugging_face_obstacle(const ModelConfig& model) {
  if (model.smear_tokens() > 0) return "embeddings take up those of the tokens before";
  if (model.output_gate()) return "attention has an output gate";
  if (model.attention().sink_logit()) return "attention has learned sink logits";
  if (!has_experts(model)) return "";
  const MoeConfig& moe = model.moe();
  if (moe.router() == MoeConfig::SIGMOID) return "the router is sigmoid";
  if (moe.shared_experts() > 0) return "there are shared experts";
  if (model.qk_norm()) return "";
  if (moe.dense_layers() > 0) return "the first layers are dense and there is no qk_norm";
  if (moe.router() == MoeConfig::SOFTMAX) {
    return "the weights of experts do not sum to 1 and there is no qk_norm";
  }
  return "";
}

HuggingFaceArchitecture hugging_face_architecture(const ModelConfig& model) {
  if (!hugging_face_obstacle(model).empty()) return Architecture::kTessera;
  if (has_experts(model)) return model.qk_norm() ? Architecture::kQwen3Moe : Architecture::kMixtral;
  return model.qk_norm() ? Architecture::kQwen3 : Architecture::kLlama;
}

const char* class_name(HuggingFaceArchitecture architecture) {
  switch (architecture) {
    case Architecture::kLlama:
      return "LlamaForCausalLM";
    case Architecture::kQwen3:
      return "Qwen3ForCausalLM";
    case Architecture::kMixtral:
      return "MixtralForCausalLM";
    case Architecture::kQwen3Moe:
      return "Qwen3MoeForCausalLM";
    default:
      return "TesseraForCausalLM";
  }
}

bool is_gate_parameter(const std::string& name) {
  return name.find(concat(".", kGate)) != std::string::npos;
}

const char* type_name(HuggingFaceArchitecture architecture) {
  switch (architecture) {
    case Architecture::kLlama:
      return "llama";
    case Architecture::kQwen3:
      return "qwen3";
    case Architecture::kMixtral:
      return "mixtral";
    case Architecture::kQwen3Moe:
      return "qwen3_moe";
    default:
      return "tessera";
  }
}

std::vector<HuggingFacePart> hugging_face_parts(const ModelConfig& model,
                                                const std::string& parameter, const Shape& shape) {
  static const std::map<std::string, const char*> kOutsideLayers{
      {"embedding.weight", "model.embed_tokens.weight"},
      {"embedding.smear.weight", "model.tessera_smear.weight"},
      {"head.norm.weight", "model.norm.weight"},
      {"head.weight", "lm_head.weight"}};
  const auto outside = kOutsideLayers.find(parameter);
  if (outside != kOutsideLayers.end()) return {{.name = outside->second, .shape = shape}};
  CHECK(parameter.starts_with("layers."), "export: parameter ", parameter, " has no name");
  const size_t rest = parameter.find('.', std::string("layers.").size()) + 1;
  const bool mixtral = hugging_face_architecture(model) == Architecture::kMixtral;
  return PartList(parameter.substr(0, rest), mixtral).of(parameter.substr(rest), shape);
}

std::string hugging_face_config(const TrainConfig& config, DType dtype) {
  const ModelConfig& model = config.model();
  const Architecture architecture = hugging_face_architecture(model);
  nlohmann::json json{
      {"architectures", {class_name(architecture)}},
      {"model_type", type_name(architecture)},
      {"vocab_size", model.vocabulary()},
      {"hidden_size", model.hidden()},
      {"intermediate_size", model.intermediate()},
      {"num_hidden_layers", model.layers()},
      {"num_attention_heads", model.heads()},
      {"num_key_value_heads", model.kv_heads()},
      {"head_dim", model.head_dim() > 0 ? model.head_dim() : model.hidden() / model.heads()},
      {"rms_norm_eps", model.norm_epsilon()},
      {"rope_theta", model.rope_base()},
      {"rope_scaling", nullptr},
      {"tie_word_embeddings", model.tie_embeddings()},
      {"max_position_embeddings", config.batch().sequence_length()},
      {"initializer_range", model.init_std()},
      {"torch_dtype", dtype == DType::kBF16 ? "bfloat16" : "float32"},
      {"hidden_act", "silu"},
      {"attention_bias", false},
      {"attention_dropout", 0.0},
      {"use_cache", true},
      {"bos_token_id", nullptr},
      {"eos_token_id", nullptr},
  };
  if (architecture == Architecture::kLlama) json["mlp_bias"] = false;
  if (has_experts(model)) describe_experts(model.moe(), architecture, json);
  if (architecture == Architecture::kTessera) describe_tessera(model, json);
  return json.dump(2) + "\n";
}

}  // namespace tessera
