#include "runtime/import/import_plan.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/export/model_parameters.h"
#include "tests/model/tiny_model.h"

namespace tessera {
namespace {

using support::tiny_config;

/// The tensors of a model of Hugging Face, as a list to change.
std::vector<PlacedTensor> tensors_of(const ModelConfig& model, bool gates) {
  std::vector<PlacedTensor> tensors;
  for (const Parameter& parameter : model_parameters(model, DType::kF32)) {
    if (!gates && is_gate_parameter(parameter.name)) continue;
    for (const HuggingFacePart& part :
         hugging_face_parts(model, parameter.name, parameter.shard.whole)) {
      tensors.push_back({{.name = part.name, .dtype = DType::kBF16, .shape = part.shape}, 0});
    }
  }
  return tensors;
}

class ImportPlanTest : public testing::Test {
 protected:
  ImportPlan plan() {
    std::sort(tensors_.begin(), tensors_.end(),
              [](const auto& a, const auto& b) { return a.entry.name < b.entry.name; });
    return plan_import(config_.model(), DType::kBF16, tensors_, "dir");
  }
  PlacedTensor& find(const std::string& name) {
    return *std::find_if(tensors_.begin(), tensors_.end(),
                         [&](const PlacedTensor& tensor) { return tensor.entry.name == name; });
  }
  void expect_refusal(const std::string& sentence) {
    try {
      (void)plan();
      ADD_FAILURE() << "nothing was thrown, expected: " << sentence;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadData);
      EXPECT_NE(std::string(error.what()).find(sentence), std::string::npos) << sentence << "\n"
                                                                             << error.what();
    }
  }

  TrainConfig config_ = tiny_config();
  std::vector<PlacedTensor> tensors_ = tensors_of(config_.model(), /*gates=*/false);
};

TEST_F(ImportPlanTest, EveryElementComesFromATensorOrIsInitialised) {
  const ImportPlan found = plan();
  size_t initialised = 0;
  for (const ImportedParameter& one : found.parameters) {
    int64_t next = 0;
    for (const HuggingFacePart& part : one.parts) {
      EXPECT_EQ(part.first, next);
      next += part.shape.elements();
    }
    const bool gate = is_gate_parameter(one.parameter.name);
    EXPECT_EQ(next, gate ? 0 : one.parameter.shard.whole.elements()) << one.parameter.name;
    initialised += gate ? 1 : 0;
  }
  EXPECT_GT(initialised, 0u);
  EXPECT_EQ(found.initialised.size(), initialised);
  EXPECT_TRUE(found.passed_over.empty());
}

TEST_F(ImportPlanTest, GatesComeAllOrNone) {
  tensors_ = tensors_of(config_.model(), /*gates=*/true);
  EXPECT_TRUE(plan().initialised.empty());
  tensors_.erase(tensors_.begin() +
                 (&find("model.layers.1.self_attn.tessera_gate.width") - tensors_.data()));
  expect_refusal(", 1: model.layers.1.self_attn.tessera_gate.width");
}

TEST_F(ImportPlanTest, FloatsOfEveryKindAreTaken) {
  find("model.norm.weight").entry.dtype = DType::kF32;
  find("lm_head.weight").entry.dtype = DType::kU16;
  find("lm_head.weight").entry.is_f16 = true;
  EXPECT_NO_THROW(plan());
  find("lm_head.weight").entry.is_f16 = false;
  find("model.norm.weight").entry.dtype = DType::kI32;
  expect_refusal("dir has tensors that are not F32, BF16 or F16, 2: ");
}

TEST_F(ImportPlanTest, EveryKindOfTroubleIsTold) {
  find("model.norm.weight").entry.name = "model.norm.wait";
  std::swap(find("lm_head.weight").entry.shape,
            find("model.layers.0.mlp.up_proj.weight").entry.shape);
  try {
    (void)plan();
    FAIL();
  } catch (const Error& error) {
    const std::string found = error.what();
    for (const std::string& part :
         {concat("dir lacks tensors of the model, which has ", tensors_.size(),
                 ", 1: model.norm.weight"),
          std::string("dir has tensors of another shape, 2: "),
          std::string("lm_head.weight is [40, 32], expected [61, 32]"),
          std::string("has tensors that the model has no place for, 1: model.norm.wait")}) {
      EXPECT_NE(found.find(part), std::string::npos) << part << "\n" << found;
    }
  }
  tensors_.clear();
  expect_refusal(" more");
}

TEST_F(ImportPlanTest, WhatTransformersPassesOverIsPassedOver) {
  tensors_.push_back(
      {{.name = "model.layers.0.self_attn.rotary_emb.inv_freq", .dtype = DType::kF32, .shape = {4}},
       0});
  EXPECT_EQ(plan().passed_over,
            std::vector<std::string>{"model.layers.0.self_attn.rotary_emb.inv_freq"});
  config_ = tiny_config({"model.tie_embeddings=true"});
  EXPECT_EQ(plan().passed_over.size(), 2u);  // lm_head.weight
}

}  // namespace
}  // namespace tessera
