#include "runtime/export/hugging_face.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "model/whole_parameters.h"
#include "tests/model/tiny_model.h"

namespace tessera {
namespace {

using support::tiny_config;
using support::TinyModel;

// Overrides of tiny_config(), which has everything: 2 layers, hidden 32, 4 heads, 2 groups, head 8.
using Overrides = std::vector<std::string>;
const Overrides kPlain{"model.smear_tokens=0", "model.output_gate=false",
                       "model.attention.sink_logit=false"};

Overrides plus(Overrides all, const Overrides& more) {
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

const Overrides kQwen3 = plus(kPlain, {"model.moe="});
const Overrides kLlama = plus(kQwen3, {"model.qk_norm=false"});
const Overrides kQwen3Moe =
    plus(kPlain, {"model.moe.router=SOFTMAX_NORMALIZED", "model.moe.balance_bias_rate=0",
                  "model.moe.shared_experts=0"});
const Overrides kMixtral =
    plus(kQwen3Moe, {"model.qk_norm=false", "model.moe.dense_layers=0", "model.intermediate=40"});

using Tensors = std::map<std::string, ConstTensorView>;

WholeParameters values_of(TinyModel& model) {
  return {model.stream, model.store, WholeParameters::Of::kValues};
}

Tensors exported(const WholeParameters& values, const TrainConfig& config, bool gates = false) {
  Tensors tensors;
  for (const auto& [parameter, value] : values.all()) {
    if (!gates && is_gate_parameter(parameter)) continue;
    const ConstTensorView flat = value.reshape({value.elements()});
    int64_t next = 0;
    for (const HuggingFacePart& part :
         hugging_face_parts(config.model(), parameter, value.shape())) {
      EXPECT_EQ(part.first, next) << part.name;
      next += part.shape.elements();
      const ConstTensorView data = flat.rows(part.first, part.shape.elements()).reshape(part.shape);
      EXPECT_TRUE(tensors.emplace(part.name, data).second) << part.name << " is there twice";
    }
    EXPECT_EQ(next, value.elements()) << parameter;
  }
  return tensors;
}

using Shapes = std::map<std::string, Shape>;

Shapes shapes(const Overrides& overrides, bool gates = false) {
  const TrainConfig config = tiny_config(overrides);
  TinyModel model(config);
  const WholeParameters values = values_of(model);
  Shapes found;
  for (const auto& [name, data] : exported(values, config, gates)) found[name] = data.shape();
  return found;
}

/// What every architecture has, with the mlp of a dense layer only where `dense` says so.
Shapes expected_shapes(bool qk_norm, const std::vector<bool>& dense) {
  Shapes expected{{"model.embed_tokens.weight", {61, 32}},
                  {"model.norm.weight", {32}},
                  {"lm_head.weight", {61, 32}}};
  for (size_t layer = 0; layer < dense.size(); ++layer) {
    const std::string name = concat("model.layers.", layer, ".");
    expected[name + "input_layernorm.weight"] = {32};
    expected[name + "post_attention_layernorm.weight"] = {32};
    expected[name + "self_attn.q_proj.weight"] = {32, 32};
    expected[name + "self_attn.k_proj.weight"] = {16, 32};
    expected[name + "self_attn.v_proj.weight"] = {16, 32};
    expected[name + "self_attn.o_proj.weight"] = {32, 32};
    if (qk_norm) expected[name + "self_attn.q_norm.weight"] = {8};
    if (qk_norm) expected[name + "self_attn.k_norm.weight"] = {8};
    if (!dense[layer]) continue;
    expected[name + "mlp.gate_proj.weight"] = {40, 32};
    expected[name + "mlp.up_proj.weight"] = {40, 32};
    expected[name + "mlp.down_proj.weight"] = {32, 40};
  }
  return expected;
}

void add_experts(Shapes& expected, const std::string& layer, const std::string& gate,
                 const std::string& up, const std::string& down) {
  expected[layer + "gate.weight"] = {4, 32};
  for (int expert = 0; expert < 4; ++expert) {
    const std::string name = concat(layer, "experts.", expert, ".");
    expected[name + gate + ".weight"] = {24, 32};
    expected[name + up + ".weight"] = {24, 32};
    expected[name + down + ".weight"] = {32, 24};
  }
}

void expect_equal(const Shapes& found, const Shapes& expected) {
  for (const auto& [name, shape] : expected) {
    ASSERT_TRUE(found.contains(name)) << name << " is missing";
    EXPECT_EQ(found.at(name), shape) << name;
  }
  for (const auto& [name, shape] : found) EXPECT_TRUE(expected.contains(name)) << name;
}

TEST(HuggingFace, LlamaHasAllItsTensors) {
  expect_equal(shapes(kLlama), expected_shapes(false, {true, true}));
}

TEST(HuggingFace, Qwen3HasAllItsTensors) {
  expect_equal(shapes(kQwen3), expected_shapes(true, {true, true}));
}

TEST(HuggingFace, MixtralHasAllItsTensors) {
  Shapes expected = expected_shapes(false, {false, false});
  add_experts(expected, "model.layers.0.block_sparse_moe.", "w1", "w3", "w2");
  add_experts(expected, "model.layers.1.block_sparse_moe.", "w1", "w3", "w2");
  expect_equal(shapes(kMixtral), expected);
}

TEST(HuggingFace, Qwen3MoeHasAllItsTensors) {
  Shapes expected = expected_shapes(true, {true, false});
  add_experts(expected, "model.layers.1.mlp.", "gate_proj", "up_proj", "down_proj");
  expect_equal(shapes(kQwen3Moe), expected);
}

TEST(HuggingFace, WhatNoArchitectureHasGetsFurtherTensors) {
  Shapes expected = expected_shapes(true, {true, false});
  add_experts(expected, "model.layers.1.mlp.", "gate_proj", "up_proj", "down_proj");
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    expected[layer + "self_attn.tessera_output_gate.weight"] = {32, 32};
    expected[layer + "self_attn.sinks"] = {4};
  }
  expected["model.tessera_smear.weight"] = {2, 32};
  const std::string mlp = "model.layers.1.mlp.";
  expected[mlp + "gate.e_score_correction_bias"] = {4};
  expected[mlp + "shared_experts.gate_proj.weight"] = {24, 32};
  expected[mlp + "shared_experts.up_proj.weight"] = {24, 32};
  expected[mlp + "shared_experts.down_proj.weight"] = {32, 24};
  expect_equal(shapes({}), expected);
}

TEST(HuggingFace, TiedHeadIsNotRepeated) {
  Shapes expected = expected_shapes(false, {true, true});
  expected.erase("lm_head.weight");
  expect_equal(shapes(plus(kLlama, {"model.tie_embeddings=true"})), expected);
}

TEST(HuggingFace, GatesOnlyWhenAsked) {
  Shapes expected = expected_shapes(false, {true, true});
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    expected[layer + "self_attn.tessera_gate.query.weight"] = {1, 8, 16};
    expected[layer + "self_attn.tessera_gate.key.weight"] = {1, 8, 8};
    expected[layer + "self_attn.tessera_gate.pool"] = {1, 8};
    expected[layer + "self_attn.tessera_gate.width"] = {1};
  }
  expect_equal(shapes(kLlama, true), expected);
}

/// Fails unless `part` holds the elements of `whole` from `begin` on.
void expect_part(const Tensors& tensors, const std::string& part, ConstTensorView whole,
                 int64_t begin) {
  const auto found = tensors.at(part).as<float>();
  const auto expected = whole.as<float>().subspan(static_cast<size_t>(begin), found.size());
  EXPECT_TRUE(std::ranges::equal(found, expected)) << part;
}

TEST(HuggingFace, ValuesAreThoseOfTheParameters) {
  const TrainConfig config = tiny_config(kQwen3Moe);
  TinyModel model(config);
  const WholeParameters store = values_of(model);
  const Tensors tensors = exported(store, config);
  expect_part(tensors, "model.embed_tokens.weight", store.find("embedding.weight"), 0);
  expect_part(tensors, "lm_head.weight", store.find("head.weight"), 0);
  const std::string ours = "layers.1.attention.";
  const std::string theirs = "model.layers.1.self_attn.";
  expect_part(tensors, theirs + "q_proj.weight", store.find(ours + "query.weight"), 0);
  expect_part(tensors, theirs + "k_proj.weight", store.find(ours + "key.weight"), 0);
  expect_part(tensors, theirs + "v_proj.weight", store.find(ours + "value.weight"), 0);
  expect_part(tensors, theirs + "o_proj.weight", store.find(ours + "out.weight"), 0);
  const ConstTensorView dense = store.find("layers.0.mlp.gate_up.weight");
  expect_part(tensors, "model.layers.0.mlp.gate_proj.weight", dense, 0);
  expect_part(tensors, "model.layers.0.mlp.up_proj.weight", dense, 40 * 32);
  const std::string mlp = "model.layers.1.mlp.";
  expect_part(tensors, mlp + "gate.weight", store.find("layers.1.moe.router.weight"), 0);
  const ConstTensorView gate_up = store.find("layers.1.moe.experts.gate_up.weight");
  expect_part(tensors, mlp + "experts.3.gate_proj.weight", gate_up, 3 * 48 * 32);
  expect_part(tensors, mlp + "experts.3.up_proj.weight", gate_up, (3 * 48 + 24) * 32);
  expect_part(tensors, mlp + "experts.3.down_proj.weight",
              store.find("layers.1.moe.experts.down.weight"), 3 * 32 * 24);
}

TEST(HuggingFace, MixtralMultipliesW1AndW3AsGateAndUp) {
  const TrainConfig config = tiny_config(kMixtral);
  TinyModel model(config);
  const WholeParameters store = values_of(model);
  const Tensors tensors = exported(store, config);
  const ConstTensorView gate_up = store.find("layers.0.moe.experts.gate_up.weight");
  const std::string expert = "model.layers.0.block_sparse_moe.experts.2.";
  expect_part(tensors, expert + "w1.weight", gate_up, 2 * 48 * 32);
  expect_part(tensors, expert + "w3.weight", gate_up, (2 * 48 + 24) * 32);
  expect_part(tensors, expert + "w2.weight", store.find("layers.0.moe.experts.down.weight"),
              2 * 32 * 24);
}

nlohmann::json parsed(const Overrides& overrides, DType dtype = DType::kF32) {
  return nlohmann::json::parse(hugging_face_config(tiny_config(overrides), dtype));
}

TEST(HuggingFace, ConfigSaysWhatTransformersAsksFor) {
  const nlohmann::json json = parsed(kLlama, DType::kBF16);
  const nlohmann::json expected{{"architectures", nlohmann::json::array({"LlamaForCausalLM"})},
                                {"model_type", "llama"},
                                {"vocab_size", 61},
                                {"hidden_size", 32},
                                {"intermediate_size", 40},
                                {"num_hidden_layers", 2},
                                {"num_attention_heads", 4},
                                {"num_key_value_heads", 2},
                                {"head_dim", 8},
                                {"rope_theta", 10000.0},
                                {"tie_word_embeddings", false},
                                {"max_position_embeddings", 112},
                                {"torch_dtype", "bfloat16"},
                                {"hidden_act", "silu"},
                                {"bos_token_id", nullptr}};
  for (const auto& [key, value] : expected.items()) EXPECT_EQ(json.at(key), value) << key;
  EXPECT_FLOAT_EQ(json.at("rms_norm_eps"), 1e-5f);
  EXPECT_FALSE(json.contains("num_experts"));
  EXPECT_EQ(parsed(kLlama).at("torch_dtype"), "float32");
  EXPECT_EQ(parsed(kQwen3).at("model_type"), "qwen3");
}

TEST(HuggingFace, ConfigDescribesExperts) {
  const nlohmann::json mixtral = parsed(kMixtral);
  EXPECT_EQ(mixtral.at("model_type"), "mixtral");
  EXPECT_EQ(mixtral.at("num_local_experts"), 4);
  EXPECT_EQ(mixtral.at("num_experts_per_tok"), 2);
  EXPECT_EQ(mixtral.at("intermediate_size"), 24);
  const nlohmann::json qwen = parsed(kQwen3Moe);
  EXPECT_EQ(qwen.at("architectures"), nlohmann::json::array({"Qwen3MoeForCausalLM"}));
  EXPECT_EQ(qwen.at("num_experts"), 4);
  EXPECT_EQ(qwen.at("moe_intermediate_size"), 24);
  EXPECT_EQ(qwen.at("intermediate_size"), 40);
  EXPECT_EQ(qwen.at("mlp_only_layers"), nlohmann::json::array({0}));
  EXPECT_EQ(qwen.at("norm_topk_prob"), true);
  const auto router = [](const std::string& mode) {
    return parsed(plus(kQwen3Moe, {"model.moe.router=" + mode})).at("norm_topk_prob");
  };
  EXPECT_EQ(router("SOFTMAX"), false);
  EXPECT_EQ(router("SOFTMAX_TOPK"), true);
}

TEST(HuggingFace, EveryObstacleIsNamed) {
  const auto obstacle = [](const Overrides& base, const Overrides& more) {
    return hugging_face_obstacle(tiny_config(plus(base, more)).model());
  };
  for (const Overrides& good : {kLlama, kQwen3, kMixtral, kQwen3Moe}) {
    EXPECT_EQ(obstacle(good, {}), "");
  }
  EXPECT_EQ(obstacle(kLlama, {"model.smear_tokens=1"}),
            "embeddings take up those of the tokens before");
  EXPECT_EQ(obstacle(kLlama, {"model.output_gate=true"}), "attention has an output gate");
  EXPECT_EQ(obstacle(kLlama, {"model.attention.sink_logit=true"}),
            "attention has learned sink logits");
  EXPECT_EQ(obstacle(kQwen3Moe, {"model.moe.router=SIGMOID"}), "the router is sigmoid");
  EXPECT_EQ(obstacle(kQwen3Moe, {"model.moe.shared_experts=1"}), "there are shared experts");
  EXPECT_EQ(obstacle(kQwen3Moe, {"model.qk_norm=false"}),
            "the first layers are dense and there is no qk_norm");
  EXPECT_EQ(obstacle(kMixtral, {"model.moe.router=SOFTMAX"}),
            "the weights of experts do not sum to 1 and there is no qk_norm");
  EXPECT_EQ(parsed({}).at("model_type"), "tessera");
}

}  // namespace
}  // namespace tessera
