#include "runtime/config/override.h"

#include <google/protobuf/descriptor.pb.h>
#include <gtest/gtest.h>

#include "runtime/config/train.pb.h"
#include "runtime/config/wording.h"

namespace tessera {
namespace {

std::string problem_of(const std::string& assignment) {
  TrainConfig config;
  Findings findings;
  apply_override(assignment, config, findings);
  return joined(findings.problems);
}

TEST(Override, ReplacesNumbersNamesTextsAndMessages) {
  TrainConfig config;
  config.set_steps(1);
  config.mutable_mesh()->set_tensor(8);
  Findings findings;
  for (const char* assignment :
       {"steps=20", "optimizer.learning_rate=-1e-3", "model.moe.router=SIGMOID",
        "run_dir=a b/\"c\"", "data.path='quoted'", "mesh={expert: 2 data: 3}",
        "model.qk_norm=true"}) {
    apply_override(assignment, config, findings);
  }
  EXPECT_EQ(joined(findings.problems), "");
  EXPECT_EQ(config.steps(), 20);
  EXPECT_EQ(config.optimizer().learning_rate(), -1e-3);
  EXPECT_EQ(config.model().moe().router(), MoeConfig::SIGMOID);
  EXPECT_EQ(config.run_dir(), "a b/\"c\"");
  EXPECT_EQ(config.data().path(), "quoted");
  EXPECT_EQ(config.mesh().ShortDebugString(), "data: 3 expert: 2");
  EXPECT_TRUE(config.model().qk_norm());
}

TEST(Override, ReplacesWholeLists) {
  google::protobuf::FileDescriptorProto file;
  file.add_dependency("old");
  Findings findings;
  apply_override("dependency=['a', 'b']", file, findings);
  EXPECT_EQ(joined(findings.problems), "");
  ASSERT_EQ(file.dependency_size(), 2);
  EXPECT_EQ(file.dependency(0), "a");
}

TEST(Override, EmptyValueTakesTheFieldAway) {
  TrainConfig config;
  config.mutable_model()->mutable_moe()->set_experts(8);
  Findings findings;
  findings.origins["model.moe"] = "t:1:1";
  findings.origins["model.moe.experts"] = "t:2:1";
  findings.origins["model.moe_like"] = "t:3:1";
  apply_override("model.moe=", config, findings);
  EXPECT_EQ(joined(findings.problems), "");
  EXPECT_FALSE(config.model().has_moe());
  EXPECT_EQ(findings.origins.size(), 1u);
  EXPECT_TRUE(findings.origins.contains("model.moe_like"));
}

TEST(Override, NotesWhereTheValueCameFrom) {
  TrainConfig config;
  Findings findings;
  findings.origins["steps"] = "t:1:1";
  apply_override("steps=3", config, findings);
  apply_override("steps=4", config, findings);
  EXPECT_EQ(joined(findings.problems), "");
  EXPECT_EQ(findings.origins.at("steps"), "--set steps=4");
}

TEST(Override, NamesTheOverrideAndTheNearestName) {
  EXPECT_EQ(problem_of("model.layerz=3"),
            "--set model.layerz=3: model has no field \"layerz\"; did you mean \"layers\"?");
  EXPECT_EQ(problem_of("modle.layers=3"),
            "--set modle.layers=3: TrainConfig has no field \"modle\"; did you mean \"model\"?");
  EXPECT_EQ(problem_of("steps"), "--set steps: has no \"=\", expected a.b.c=value");
  EXPECT_EQ(problem_of("steps.more=1"),
            "--set steps.more=1: steps has no fields, expected steps=value");
  EXPECT_EQ(problem_of("steps=many"),
            "--set steps=many: steps is many, expected an integer of at most 64 bits");
  EXPECT_EQ(problem_of("steps=1 steps: 2"),
            "--set steps=1 steps: 2: unexpected \"steps\" after the value");
  EXPECT_EQ(problem_of("mesh={tensr: 2}"),
            "--set mesh={tensr: 2}: mesh has no field \"tensr\"; did you mean \"tensor\"?");
  EXPECT_EQ(problem_of("model.=1").substr(0, 45),
            "--set model.=1: model has no field \"\"; expect");
  EXPECT_EQ(problem_of("=1").substr(0, 36), "--set =1: TrainConfig has no field \"");
}

TEST(Override, SurvivesHostileArguments) {
  EXPECT_LT(problem_of(std::string(1000000, 'x')).size(), 200u);
  EXPECT_LT(problem_of(std::string(1000000, '.') + "=1").size(), 300u);
  EXPECT_LT(problem_of("steps=" + std::string(1000000, '9')).size(), 300u);
  EXPECT_LT(problem_of("model=" + std::string(1000000, '{')).size(), 300u);
  EXPECT_NE(problem_of("data.path=\"\n\""), "");
}

}  // namespace
}  // namespace tessera
