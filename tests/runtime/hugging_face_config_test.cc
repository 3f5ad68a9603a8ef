#include "runtime/import/hugging_face_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "runtime/config/text_writer.h"
#include "tests/model/tiny_model.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

using support::tiny_config;
using Json = nlohmann::json;
using Overrides = std::vector<std::string>;

const Json kLlama{{"model_type", "llama"},      {"architectures", {"LlamaForCausalLM"}},
                  {"vocab_size", 100},          {"hidden_size", 64},
                  {"intermediate_size", 96},    {"num_hidden_layers", 3},
                  {"num_attention_heads", 4},   {"num_key_value_heads", 2},
                  {"rms_norm_eps", 1e-6},       {"rope_theta", 500000.0},
                  {"tie_word_embeddings", true}};

Json with(Json base, const Json& more) {
  base.update(more);
  return base;
}

const Json kMixtral = with(kLlama, {{"model_type", "mixtral"},
                                    {"architectures", {"MixtralForCausalLM"}},
                                    {"num_local_experts", 8},
                                    {"num_experts_per_tok", 2}});
const Json kQwen3 = with(
    kLlama, {{"model_type", "qwen3"}, {"architectures", {"Qwen3ForCausalLM"}}, {"head_dim", 32}});
const Json kQwen3Moe = with(kLlama, {{"model_type", "qwen3_moe"},
                                     {"architectures", {"Qwen3MoeForCausalLM"}},
                                     {"num_experts", 8},
                                     {"num_experts_per_tok", 2},
                                     {"moe_intermediate_size", 48},
                                     {"norm_topk_prob", true},
                                     {"mlp_only_layers", {1, 0}}});

ModelConfig read(const Json& json) {
  ModelConfig model;
  read_hugging_face_config(json.dump(), "c.json", model);
  return model;
}

std::string refusal(const std::string& text) {
  ModelConfig model;
  try {
    read_hugging_face_config(text, "c.json", model);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    EXPECT_TRUE(std::string(error.what()).starts_with("c.json")) << error.what();
    return error.what();
  }
  return "";
}

void expect_refusal(const Json& json, const std::string& sentence) {
  EXPECT_NE(refusal(json.dump()).find(sentence), std::string::npos) << sentence << "\n"
                                                                    << refusal(json.dump());
}

TEST(HuggingFaceConfig, ReadsALlama) {
  const ModelConfig model = read(kLlama);
  EXPECT_EQ(model.vocabulary(), 100);
  EXPECT_EQ(model.hidden(), 64);
  EXPECT_EQ(model.intermediate(), 96);
  EXPECT_EQ(model.layers(), 3);
  EXPECT_EQ(model.heads(), 4);
  EXPECT_EQ(model.kv_heads(), 2);
  EXPECT_EQ(model.head_dim(), 16);
  EXPECT_EQ(model.norm_epsilon(), 1e-6F);
  EXPECT_EQ(model.rope_base(), 500000.0F);
  EXPECT_TRUE(model.tie_embeddings());
  EXPECT_FALSE(model.qk_norm());
  EXPECT_FALSE(model.has_moe());
}

TEST(HuggingFaceConfig, WhatOldLlamasDoNotSayHasTheValueOfTheirTime) {
  Json old = kLlama;
  for (const char* key : {"num_key_value_heads", "rope_theta", "tie_word_embeddings"}) {
    old.erase(key);
  }
  const ModelConfig model = read(old);
  EXPECT_EQ(model.kv_heads(), 4);
  EXPECT_EQ(model.rope_base(), 10000.0F);
  EXPECT_FALSE(model.tie_embeddings());
}

TEST(HuggingFaceConfig, ReadsExperts) {
  const ModelConfig mixtral = read(kMixtral);
  EXPECT_EQ(mixtral.moe().experts(), 8);
  EXPECT_EQ(mixtral.moe().experts_per_token(), 2);
  EXPECT_EQ(mixtral.moe().intermediate(), 96);
  EXPECT_EQ(mixtral.moe().router(), MoeConfig::SOFTMAX_TOPK);
  const ModelConfig qwen = read(kQwen3Moe);
  EXPECT_TRUE(qwen.qk_norm());
  EXPECT_EQ(qwen.moe().intermediate(), 48);
  EXPECT_EQ(qwen.moe().dense_layers(), 2);
  EXPECT_EQ(qwen.moe().router(), MoeConfig::SOFTMAX_NORMALIZED);
  EXPECT_EQ(read(with(kQwen3Moe, {{"norm_topk_prob", false}})).moe().router(), MoeConfig::SOFTMAX);
  EXPECT_EQ(read(kQwen3).head_dim(), 32);
  EXPECT_TRUE(read(kQwen3).qk_norm());
}

TEST(HuggingFaceConfig, ReadsTheKeysOfTransformers5) {
  Json json = with(kLlama, {{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 7e4}}},
                            {"dtype", "bfloat16"},
                            {"layer_types", {"full_attention", "full_attention"}}});
  json.erase("rope_theta");
  EXPECT_EQ(read(json).rope_base(), 7e4F);
}

TEST(HuggingFaceConfig, HarmlessSettingsAreAccepted) {
  for (const Json& more :
       std::vector<Json>{{{"rope_scaling", nullptr}},
                         {{"rope_scaling", {{"rope_type", "default"}}}},
                         {{"attention_bias", false}, {"mlp_bias", false}, {"hidden_act", "silu"}},
                         {{"sliding_window", nullptr}},
                         {{"sliding_window", 4096}, {"max_position_embeddings", 4096}},
                         {{"sliding_window", 64}, {"use_sliding_window", false}},
                         {{"partial_rotary_factor", 1.0}}}) {
    EXPECT_EQ(refusal(with(kLlama, more).dump()), "");
  }
  EXPECT_EQ(refusal(with(kQwen3, {{"sliding_window", 64}}).dump()), "");
  EXPECT_EQ(
      refusal(with(kLlama, {{"model_type", "mistral"}, {"architectures", {"MistralForCausalLM"}}})
                  .dump()),
      "");
}

TEST(HuggingFaceConfig, RefusesWhatOurModelCannotCompute) {
  const std::vector<std::pair<Json, std::string>> cases{
      {{{"model_type", "qwen2"}}, "model_type is \"qwen2\"; did you mean \"qwen3\"?"},
      {{{"architectures", {"LlamaForSequenceClassification"}}}, "architectures is"},
      {{{"attention_bias", true}}, "attention_bias is true, expected false"},
      {{{"mlp_bias", true}}, "mlp_bias is true, expected false"},
      {{{"hidden_act", "gelu"}}, "hidden_act is \"gelu\", expected \"silu\""},
      {{{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}}}}, "rope_scaling is"},
      {{{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}}, "rope_scaling is"},
      {{{"rope_scaling", {{"factor", 2}}}}, "rope_scaling is"},
      {{{"rope_scaling", 3}}, "rope_scaling is 3"},
      {{{"rope_parameters", {{"rope_type", "yarn"}}}}, "rope_parameters is"},
      {{{"sliding_window", 64}}, "sliding_window is 64, expected none"},
      {{{"sliding_window", 64}, {"max_position_embeddings", 65}}, "sliding_window is 64"},
      {{{"layer_types", {"full_attention", "sliding_attention"}}}, "layer_types is"},
      {{{"partial_rotary_factor", 0.5}}, "partial_rotary_factor is 0.5, expected 1"},
      {{{"quantization_config", {{"bits", 4}}}}, "quantization_config is set"},
  };
  for (const auto& [more, sentence] : cases) expect_refusal(with(kLlama, more), sentence);
  expect_refusal(with(kQwen3, {{"sliding_window", 64}, {"use_sliding_window", true}}),
                 "sliding_window is 64");
  expect_refusal(with(kQwen3Moe, {{"decoder_sparse_step", 2}}), "decoder_sparse_step is 2");
  expect_refusal(with(kQwen3Moe, {{"mlp_only_layers", {1}}}), "mlp_only_layers is [1]");
  expect_refusal(with(kQwen3Moe, {{"mlp_only_layers", {0, 0}}}), "mlp_only_layers is [0,0]");
  expect_refusal(with(kQwen3Moe, {{"mlp_only_layers", {0, "1"}}}), "mlp_only_layers is");
}

TEST(HuggingFaceConfig, AllProblemsAreToldAtOnce) {
  Json json = with(kLlama, {{"hidden_size", "big"},
                            {"num_hidden_layers", -1},
                            {"attention_bias", true},
                            {"rms_norm_eps", 0}});
  json.erase("vocab_size");
  for (const char* sentence :
       {"c.json: vocab_size is missing, expected a whole number",
        "c.json: hidden_size is \"big\", expected a whole number from 1",
        "c.json: num_hidden_layers is -1, expected a whole number from 1",
        "c.json: rms_norm_eps is 0, expected a number above 0", "c.json: attention_bias is true"}) {
    expect_refusal(json, sentence);
  }
}

TEST(HuggingFaceConfig, RefusesBrokenText) {
  const std::string good = kLlama.dump();
  const auto expect = [](const std::string& text, const std::string& sentence) {
    EXPECT_NE(refusal(text).find(sentence), std::string::npos) << refusal(text);
  };
  expect("", "is no valid JSON");
  expect("[]", "does not begin with {");
  expect("{}", "model_type is \"\"");
  expect(good.substr(0, good.size() - 1), "is no valid JSON");
  expect("{\"hidden_size\":1," + good.substr(1), "has \"hidden_size\" twice");
  expect(std::string(100, '['), "is nested too deeply");
  expect(std::string(1'000'000, '['), "is nested too deeply");
  expect(std::string(2'000'000, ' '), "has more than 1048576 bytes");
  expect(R"({"model_type":7})", "model_type is 7, expected a text");
  for (const char* huge : {"1e999", "99999999999999999999", "2147483648", "1.5", "true", "[1]"}) {
    std::string text = good;
    text.replace(text.find("\"hidden_size\":64"), 16, concat("\"hidden_size\":", huge));
    EXPECT_NE(refusal(text), "") << huge;
  }
}

// What we write we read back: every architecture of hugging_face_test.
TEST(HuggingFaceConfig, ReadsWhatTheExportWrites) {
  const Overrides plain{"model.smear_tokens=0", "model.output_gate=false",
                        "model.attention.sink_logit=false"};
  const Overrides softmax{"model.moe.router=SOFTMAX_NORMALIZED", "model.moe.balance_bias_rate=0",
                          "model.moe.shared_experts=0"};
  const auto joined = [](Overrides all, const Overrides& more) {
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  for (const Overrides& overrides : std::vector<Overrides>{
           {},
           {"model.moe="},
           {"model.moe.router_scale=2.5"},
           {"model.smear_tokens=0"},
           joined(plain, {"model.moe="}),
           joined(plain, {"model.moe=", "model.qk_norm=false", "model.rope_base=3e5"}),
           joined(plain, softmax),
           joined(plain, {"model.moe.router=SOFTMAX", "model.moe.balance_bias_rate=0",
                          "model.moe.shared_experts=0", "model.tie_embeddings=true"}),
           joined(joined(plain, softmax),
                  {"model.qk_norm=false", "model.moe.dense_layers=0", "model.head_dim=16"})}) {
    const TrainConfig config = tiny_config(overrides);
    const std::string text = hugging_face_config(config, DType::kBF16);
    ModelConfig model;
    const auto description = read_hugging_face_config(text, "c.json", model);
    EXPECT_EQ(description.architecture, hugging_face_architecture(config.model())) << text;
    EXPECT_EQ(description.positions, config.batch().sequence_length());
    for (const FieldProblem& problem : model_disagreements(config.model(), model, "c.json")) {
      ADD_FAILURE() << problem.field << " " << problem.what << "\n" << text;
    }
    EXPECT_EQ(model.init_std(), config.model().init_std());
    EXPECT_EQ(model.moe().balance_loss(), config.model().moe().balance_loss());
    EXPECT_EQ(model.moe().balance_bias_rate(), config.model().moe().balance_bias_rate());
  }
}

TEST(HuggingFaceConfig, EveryDisagreementIsNamedWithFoundAndExpected) {
  const TrainConfig config = tiny_config();
  ModelConfig theirs;
  read_hugging_face_config(hugging_face_config(config, DType::kF32), "c.json", theirs);
  const std::vector<std::pair<std::string, std::string>> cases{
      {"model.vocabulary=62", "is 62, expected 61 as vocab_size in c.json says"},
      {"model.hidden=64", "is 64, expected 32 as hidden_size"},
      {"model.layers=3", "is 3, expected 2 as num_hidden_layers"},
      {"model.heads=8", "is 8, expected 4 as num_attention_heads"},
      {"model.kv_heads=4", "is 4, expected 2 as num_key_value_heads"},
      {"model.head_dim=16", "is 16, expected 8 as head_dim"},
      {"model.intermediate=48", "is 48, expected 40 as intermediate_size"},
      {"model.norm_epsilon=1e-6", "is 1e-06, expected 1e-05 as rms_norm_eps"},
      {"model.rope_base=500", "is 500, expected 10000 as rope_theta"},
      {"model.tie_embeddings=true", "is true, expected false as tie_word_embeddings"},
      {"model.qk_norm=false", "is false, expected true as model_type"},
      {"model.output_gate=false", "is false, expected true as model_type"},
      {"model.smear_tokens=1", "is 1, expected 2 as model_type"},
      {"model.attention.sink_logit=false", "is false, expected true as model_type"},
      {"model.moe.experts=8", "is 8, expected 4 as num_experts"},
      {"model.moe.experts_per_token=3", "is 3, expected 2 as num_experts_per_tok"},
      {"model.moe.intermediate=32", "is 32, expected 24 as moe_intermediate_size"},
      {"model.moe.dense_layers=0", "is 0, expected 1 as mlp_only_layers"},
      {"model.moe.shared_experts=2", "is 2, expected 1 as n_shared_experts"},
      {"model.moe.router_scale=2", "is 2, expected 1 as routed_scaling_factor"},
      {"model.moe=", "is not set, expected experts"},
  };
  EXPECT_TRUE(model_disagreements(config.model(), theirs, "c.json").empty());
  for (const auto& [override, what] : cases) {
    const TrainConfig other = tiny_config({override});
    const auto found = model_disagreements(other.model(), theirs, "c.json");
    ASSERT_EQ(found.size(), 1u) << override;
    EXPECT_EQ(found[0].field, override.substr(0, override.find('=')));
    EXPECT_TRUE(found[0].what.starts_with(what)) << found[0].what;
  }
}

TEST(HuggingFaceConfig, RoutersThatComputeTheSameAgree) {
  const ModelConfig theirs = read(kQwen3Moe);
  const auto disagreements = [&](MoeConfig::RouterMode mode) {
    ModelConfig ours = theirs;
    ours.mutable_moe()->set_router(mode);
    return model_disagreements(ours, theirs, "c.json").size();
  };
  EXPECT_EQ(disagreements(MoeConfig::SOFTMAX_TOPK), 0u);
  EXPECT_EQ(disagreements(MoeConfig::SOFTMAX_NORMALIZED), 0u);
  EXPECT_EQ(disagreements(MoeConfig::SOFTMAX), 1u);
  EXPECT_EQ(disagreements(MoeConfig::SIGMOID), 1u);
}

}  // namespace
}  // namespace tessera
