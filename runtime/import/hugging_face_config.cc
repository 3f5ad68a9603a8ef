#include "runtime/import/hugging_face_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "model/model.pb.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

using Architecture = HuggingFaceArchitecture;
using Json = nlohmann::json;

constexpr size_t kMaxText = 1 << 20;
constexpr int kMaxDepth = 32;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ExitCode::kBadData, message);
}

Json parse(std::string_view text, const std::string& name) {
  if (text.size() > kMaxText) {
    refuse(concat(name, " has more than ", kMaxText, " bytes, too many for a configuration"));
  }
  std::set<std::string> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth) refuse(concat(name, " is nested too deeply"));
    if (event == Json::parse_event_t::key && depth == 1 &&
        !keys.insert(parsed.get<std::string>()).second) {
      refuse(concat(name, " has ", in_quotes(parsed.get<std::string>()), " twice"));
    }
    return true;
  };
  Json json = Json::parse(text, watch, /*allow_exceptions=*/false);
  if (json.is_discarded()) refuse(concat(name, " is no valid JSON"));
  if (!json.is_object()) refuse(concat(name, " does not begin with {"));
  return json;
}

// Takes values out of a config.json and notes what is wrong with them.
class Fields {
 public:
  Fields(const Json& json, const std::string& name) : json_(json), name_(name) {}

  template <class... Parts>
  void add_problem(const Parts&... parts) {
    problems_.push_back(concat(name_, ": ", parts...));
  }
  void throw_problems() const {
    if (!problems_.empty()) refuse(joined(problems_));
  }

  // The value, or nullptr when it is absent or null.
  const Json* find(const char* key) const { return find_in(json_, key); }
  static const Json* find_in(const Json& object, const char* key) {
    const auto at = object.find(key);
    return at == object.end() || at->is_null() ? nullptr : &*at;
  }

  int32_t integer(const char* key, int32_t least = 1) {
    const Json* value = find(key);
    if (value == nullptr) {
      add_problem(key, " is missing, expected a whole number");
      return 0;
    }
    constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
    const bool fits = value->is_number_integer() && value->get<double>() >= least &&
                      value->get<double>() <= kMost;
    if (fits) return value->get<int32_t>();
    add_problem(key, " is ", shown(value->dump()), ", expected a whole number from ", least);
    return 0;
  }
  int32_t integer_or(const char* key, int32_t standard, int32_t least = 1) {
    return find(key) == nullptr ? standard : integer(key, least);
  }

  float number(const Json* value, const char* key) {
    if (value == nullptr) {
      add_problem(key, " is missing, expected a number above 0");
      return 0;
    }
    const double number = value->is_number() ? value->get<double>() : 0;
    const auto rounded = static_cast<float>(number);
    if (rounded > 0 && std::isfinite(rounded)) return rounded;
    add_problem(key, " is ", shown(value->dump()), ", expected a number above 0");
    return 0;
  }

  bool flag(const char* key, bool standard) {
    const Json* value = find(key);
    if (value == nullptr) return standard;
    if (!value->is_boolean()) {
      add_problem(key, " is ", shown(value->dump()), ", expected true or false");
      return standard;
    }
    return value->get<bool>();
  }

  std::string text(const char* key, const std::string& standard) {
    const Json* value = find(key);
    if (value == nullptr) return standard;
    if (!value->is_string()) {
      add_problem(key, " is ", shown(value->dump()), ", expected a text");
      return standard;
    }
    return value->get<std::string>();
  }

 private:
  const Json& json_;
  const std::string& name_;
  std::vector<std::string> problems_;
};

struct Type {
  const char* name;
  const char* class_name;
  Architecture architecture;
};
// Mistral's models are Llamas, some with a sliding window.
constexpr std::array<Type, 6> kTypes{{{"llama", "LlamaForCausalLM", Architecture::kLlama},
                                      {"mistral", "MistralForCausalLM", Architecture::kLlama},
                                      {"qwen3", "Qwen3ForCausalLM", Architecture::kQwen3},
                                      {"mixtral", "MixtralForCausalLM", Architecture::kMixtral},
                                      {"qwen3_moe", "Qwen3MoeForCausalLM", Architecture::kQwen3Moe},
                                      {"tessera", "TesseraForCausalLM", Architecture::kTessera}}};

// Without the type nothing else can be read, so this one throws at once.
const Type& type_of(Fields& fields) {
  std::vector<std::string> known;
  const std::string found = fields.text("model_type", "");
  const Type* type = nullptr;
  for (const Type& one : kTypes) {
    known.emplace_back(one.name);
    if (found == one.name) type = &one;
  }
  if (type == nullptr) {
    fields.add_problem("model_type is ", in_quotes(found), did_you_mean(found, known));
    fields.throw_problems();
  }
  const Json* classes = fields.find("architectures");
  if (classes != nullptr && *classes != Json::array({type->class_name})) {
    fields.add_problem("architectures is ", shown(classes->dump()), ", expected [\"",
                       type->class_name, "\"] for model_type ", type->name);
  }
  return *type;
}

// Everything that would make it another function than ours.
void refuse_what_we_lack(Fields& fields, const Type& type, int64_t positions) {
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (fields.flag(key, false)) {
      fields.add_problem(key, " is true, expected false: our linear layers have no bias");
    }
  }
  const std::string activation = fields.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    fields.add_problem("hidden_act is ", in_quotes(activation), ", expected \"silu\"");
  }
  if (fields.find("quantization_config") != nullptr) {
    fields.add_problem("quantization_config is set, expected none: convert the weights to bf16");
  }
  if (const Json* share = fields.find("partial_rotary_factor"); share != nullptr && *share != 1) {
    fields.add_problem("partial_rotary_factor is ", shown(share->dump()),
                       ", expected 1: our rotary positions turn whole heads");
  }
  const bool is_qwen = std::string_view(type.name).starts_with("qwen");
  const Json* window = fields.find("sliding_window");
  if (window != nullptr && fields.flag("use_sliding_window", !is_qwen)) {
    const bool sees_all =
        window->is_number() && positions > 0 && window->get<double>() >= double(positions);
    if (!sees_all) {
      fields.add_problem("sliding_window is ", shown(window->dump()),
                         ", expected none or max_position_embeddings = ", positions,
                         " at least: dense attention sees every token");
    }
  }
  if (const Json* layers = fields.find("layer_types"); layers != nullptr) {
    bool full = layers->is_array();
    for (const Json& layer : *layers) full = full && layer == "full_attention";
    if (!full) {
      fields.add_problem("layer_types is ", shown(layers->dump()),
                         ", expected \"full_attention\" for every layer");
    }
  }
}

// theta; in transformers 5 it is in rope_parameters with the kind of scaling.
float rope_base(Fields& fields, const Type& type) {
  const Json* parameters = fields.find("rope_parameters");
  const char* key = parameters != nullptr ? "rope_parameters" : "rope_scaling";
  const Json* scaling = fields.find(key);
  if (scaling != nullptr) {
    const Json* kind = scaling->is_object() ? Fields::find_in(*scaling, "rope_type") : nullptr;
    if (kind == nullptr && scaling->is_object()) kind = Fields::find_in(*scaling, "type");
    if (!scaling->is_object() || (kind != nullptr && *kind != "default") ||
        (kind == nullptr && parameters == nullptr)) {
      fields.add_problem(key, " is ", shown(scaling->dump()),
                         ", expected rope_type \"default\": our rotary positions are not scaled");
    }
  }
  const Json* theta = fields.find("rope_theta");
  if (parameters != nullptr && parameters->is_object()) {
    if (const Json* inner = Fields::find_in(*parameters, "rope_theta")) theta = inner;
  }
  const bool is_llama = std::string_view(type.name) == "llama";
  if (theta == nullptr && is_llama) return 10000;  // the first Llamas do not say it
  return fields.number(theta, "rope_theta");
}

// The first layers that are dense, of layers 0 to layers - 1.
int32_t dense_layers(Fields& fields, int32_t layers) {
  if (fields.integer_or("decoder_sparse_step", 1) != 1) {
    fields.add_problem("decoder_sparse_step is ", fields.integer("decoder_sparse_step"),
                       ", expected 1: after the first dense ones every layer has experts");
  }
  const Json* list = fields.find("mlp_only_layers");
  if (list == nullptr) return 0;
  bool first_ones = list->is_array() && std::ssize(*list) <= layers;
  if (first_ones) {
    std::vector<int64_t> numbers;
    for (const Json& one : *list)
      numbers.push_back(one.is_number_integer() ? one.get<int64_t>() : -1);
    std::sort(numbers.begin(), numbers.end());
    for (size_t i = 0; i < numbers.size(); ++i) {
      first_ones = first_ones && numbers[i] == static_cast<int64_t>(i);
    }
  }
  if (!first_ones) {
    fields.add_problem("mlp_only_layers is ", shown(list->dump()),
                       ", expected the first layers, as [0, 1]");
    return 0;
  }
  return static_cast<int32_t>(std::ssize(*list));
}

void read_experts(Fields& fields, Architecture architecture, int32_t layers, MoeConfig& moe) {
  const bool mixtral = architecture == Architecture::kMixtral;
  moe.set_experts(fields.integer(mixtral ? "num_local_experts" : "num_experts"));
  moe.set_experts_per_token(fields.integer("num_experts_per_tok"));
  moe.set_intermediate(fields.integer(mixtral ? "intermediate_size" : "moe_intermediate_size"));
  if (const Json* loss = fields.find("router_aux_loss_coef"); loss != nullptr && *loss != 0) {
    moe.set_balance_loss(fields.number(loss, "router_aux_loss_coef"));
  }
  if (mixtral) return;
  moe.set_dense_layers(dense_layers(fields, layers));
  moe.set_router(fields.flag("norm_topk_prob", false) ? MoeConfig::SOFTMAX_NORMALIZED
                                                      : MoeConfig::SOFTMAX);
}

// What only our own type says.
void read_tessera(Fields& fields, ModelConfig& model) {
  model.set_qk_norm(fields.flag("qk_norm", false));
  model.set_output_gate(fields.flag("output_gate", false));
  model.set_smear_tokens(fields.integer_or("smear_tokens", 0, 0));
  model.mutable_attention()->set_sink_logit(fields.flag("sink_logit", false));
  if (fields.find("num_experts") == nullptr) return;
  MoeConfig& moe = *model.mutable_moe();
  read_experts(fields, Architecture::kTessera, model.layers(), moe);
  moe.set_shared_experts(fields.integer_or("n_shared_experts", 0, 0));
  MoeConfig::RouterMode mode{};
  const std::string name = fields.text("router_mode", "");
  if (MoeConfig::RouterMode_Parse(name, &mode)) {
    moe.set_router(mode);
  } else {
    fields.add_problem("router_mode is ", in_quotes(name), ", expected the name of a router");
  }
  if (const Json* scale = fields.find("routed_scaling_factor")) {
    moe.set_router_scale(fields.number(scale, "routed_scaling_factor"));
  }
  if (const Json* rate = fields.find("balance_bias_rate"); rate != nullptr && *rate != 0) {
    moe.set_balance_bias_rate(fields.number(rate, "balance_bias_rate"));
  }
}

void read_dimensions(Fields& fields, const Type& type, ModelConfig& model) {
  const bool is_llama = std::string_view(type.name) == "llama";
  model.set_vocabulary(fields.integer("vocab_size"));
  model.set_hidden(fields.integer("hidden_size"));
  model.set_layers(fields.integer("num_hidden_layers"));
  model.set_heads(fields.integer("num_attention_heads"));
  // Llamas without grouped queries do not say it; other types have other defaults.
  model.set_kv_heads(is_llama ? fields.integer_or("num_key_value_heads", model.heads())
                              : fields.integer("num_key_value_heads"));
  const bool divides = model.heads() > 0 && model.hidden() % model.heads() == 0;
  const bool is_qwen3 = type.architecture == Architecture::kQwen3;
  model.set_head_dim(divides && !is_qwen3
                         ? fields.integer_or("head_dim", model.hidden() / model.heads())
                         : fields.integer("head_dim"));
  if (type.architecture != Architecture::kMixtral) {
    model.set_intermediate(fields.integer("intermediate_size", 0));
  }
  model.set_norm_epsilon(fields.number(fields.find("rms_norm_eps"), "rms_norm_eps"));
  model.set_rope_base(rope_base(fields, type));
  model.set_tie_embeddings(fields.flag("tie_word_embeddings", false));
  if (const Json* range = fields.find("initializer_range"); range != nullptr && *range != 0) {
    model.set_init_std(fields.number(range, "initializer_range"));
  }
}

class Disagreements {
 public:
  explicit Disagreements(const std::string& name) : name_(name) {}

  template <class T>
  void compare(const char* field, const char* key, const T& ours, const T& theirs) {
    if (ours != theirs) add(field, text(ours), text(theirs), key);
  }
  void add(const char* field, const std::string& ours, const std::string& theirs,
           const std::string& key) {
    problems.push_back(
        {field, concat("is ", ours, ", expected ", theirs, " as ", key, " in ", name_, " says")});
  }

  std::vector<FieldProblem> problems;

 private:
  static std::string text(bool value) { return value ? "true" : "false"; }
  template <class T>
  static std::string text(const T& value) {
    return concat(value);
  }

  const std::string& name_;
};

// Softmax over the chosen logits, and softmax divided by the sum over the chosen, are one function.
bool normalizes(MoeConfig::RouterMode mode) {
  return mode == MoeConfig::SOFTMAX_TOPK || mode == MoeConfig::SOFTMAX_NORMALIZED;
}

void compare_experts(const MoeConfig& ours, const MoeConfig& theirs, bool mixtral,
                     Disagreements& found) {
  found.compare("model.moe.experts", mixtral ? "num_local_experts" : "num_experts", ours.experts(),
                theirs.experts());
  found.compare("model.moe.experts_per_token", "num_experts_per_tok", ours.experts_per_token(),
                theirs.experts_per_token());
  found.compare("model.moe.intermediate", mixtral ? "intermediate_size" : "moe_intermediate_size",
                ours.intermediate(), theirs.intermediate());
  found.compare("model.moe.dense_layers", "mlp_only_layers", ours.dense_layers(),
                theirs.dense_layers());
  found.compare("model.moe.shared_experts", "n_shared_experts", ours.shared_experts(),
                theirs.shared_experts());
  if (ours.router() != theirs.router() &&
      !(normalizes(ours.router()) && normalizes(theirs.router()))) {
    found.add("model.moe.router", MoeConfig::RouterMode_Name(ours.router()),
              MoeConfig::RouterMode_Name(theirs.router()),
              theirs.router() == MoeConfig::SOFTMAX_TOPK ? "model_type" : "norm_topk_prob");
  }
  const auto scale = [](const MoeConfig& moe) {
    return moe.has_router_scale() ? moe.router_scale() : 1.0F;
  };
  found.compare("model.moe.router_scale", "routed_scaling_factor", scale(ours), scale(theirs));
}

}  // namespace

HuggingFaceDescription read_hugging_face_config(std::string_view text, const std::string& name,
                                                ModelConfig& model) {
  const Json json = parse(text, name);
  Fields fields(json, name);
  const Type& type = type_of(fields);
  HuggingFaceDescription description{.architecture = type.architecture};
  description.positions = fields.integer_or("max_position_embeddings", 0);
  read_dimensions(fields, type, model);
  refuse_what_we_lack(fields, type, description.positions);
  const bool is_qwen = std::string_view(type.name).starts_with("qwen");
  model.set_qk_norm(is_qwen);
  if (type.architecture == Architecture::kTessera) read_tessera(fields, model);
  if (type.architecture == Architecture::kMixtral || type.architecture == Architecture::kQwen3Moe) {
    read_experts(fields, type.architecture, model.layers(), *model.mutable_moe());
  }
  fields.throw_problems();
  return description;
}

std::vector<FieldProblem> model_disagreements(const ModelConfig& ours, const ModelConfig& theirs,
                                              const std::string& name) {
  Disagreements found(name);
  found.compare("model.vocabulary", "vocab_size", ours.vocabulary(), theirs.vocabulary());
  found.compare("model.hidden", "hidden_size", ours.hidden(), theirs.hidden());
  found.compare("model.layers", "num_hidden_layers", ours.layers(), theirs.layers());
  found.compare("model.heads", "num_attention_heads", ours.heads(), theirs.heads());
  found.compare("model.kv_heads", "num_key_value_heads", ours.kv_heads(), theirs.kv_heads());
  found.compare("model.head_dim", "head_dim", ours.head_dim(), theirs.head_dim());
  if (!has_experts(theirs) || theirs.moe().dense_layers() > 0) {
    found.compare("model.intermediate", "intermediate_size", ours.intermediate(),
                  theirs.intermediate());
  }
  found.compare("model.norm_epsilon", "rms_norm_eps", ours.norm_epsilon(), theirs.norm_epsilon());
  found.compare("model.rope_base", "rope_theta", ours.rope_base(), theirs.rope_base());
  found.compare("model.tie_embeddings", "tie_word_embeddings", ours.tie_embeddings(),
                theirs.tie_embeddings());
  found.compare("model.qk_norm", "model_type", ours.qk_norm(), theirs.qk_norm());
  found.compare("model.output_gate", "model_type", ours.output_gate(), theirs.output_gate());
  found.compare("model.smear_tokens", "model_type", ours.smear_tokens(), theirs.smear_tokens());
  found.compare("model.attention.sink_logit", "model_type", ours.attention().sink_logit(),
                theirs.attention().sink_logit());
  if (has_experts(ours) != has_experts(theirs)) {
    found.add("model.moe", has_experts(ours) ? "set" : "not set",
              has_experts(theirs) ? "experts" : "none, with --set model.moe= for example,",
              "model_type");
  } else if (has_experts(theirs)) {
    const bool mixtral = hugging_face_architecture(theirs) == Architecture::kMixtral;
    compare_experts(ours.moe(), theirs.moe(), mixtral, found);
  }
  return std::move(found.problems);
}

}  // namespace tessera
