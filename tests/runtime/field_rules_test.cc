#include "runtime/config/field_rules.h"

#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <regex>
#include <set>
#include <string>

#include "runtime/config/number_field.h"
#include "runtime/config/train.pb.h"

namespace tessera {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

void for_each_number(const Descriptor& type, const std::string& prefix,
                     const std::function<void(const std::string&, const FieldDescriptor&)>& body) {
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    const std::string path = prefix + field.name();
    if (field.is_repeated()) continue;  // validate() has their rules
    const auto kind = field.cpp_type();
    if (kind == FieldDescriptor::CPPTYPE_MESSAGE) {
      for_each_number(*field.message_type(), path + ".", body);
    } else if (kind != FieldDescriptor::CPPTYPE_STRING && kind != FieldDescriptor::CPPTYPE_ENUM) {
      body(path, field);
    }
  }
}

const FieldRule* rule_of(const std::string& path) {
  for (const FieldRule& rule : field_rules()) {
    if (rule.path == path) return &rule;
  }
  return nullptr;
}

TEST(FieldRules, EveryNumberHasOneRule) {
  std::set<std::string> fields;
  for_each_number(*TrainConfig::descriptor(), "", [&](const std::string& path, const auto&) {
    if (path != "seed") fields.insert(path);  // any 64 bits
  });
  std::set<std::string> rules;
  for (const FieldRule& rule : field_rules()) {
    EXPECT_TRUE(rules.insert(rule.path).second) << rule.path << " has two rules";
  }
  EXPECT_EQ(rules, fields);
}

TEST(FieldRules, DefaultsAreAllowedAndFitTheirType) {
  for (const FieldRule& rule : field_rules()) {
    EXPECT_LT(rule.least, rule.most) << rule.path;
    if (!rule.standard) continue;
    EXPECT_GE(*rule.standard, rule.least) << rule.path;
    EXPECT_LE(*rule.standard, rule.most) << rule.path;
    TrainConfig config;
    config.mutable_model()->mutable_moe();
    NumberField field(config, rule.path);
    field.set(*rule.standard);
    EXPECT_NEAR(field.get(), *rule.standard, 1e-6 * *rule.standard) << rule.path;
  }
}

// The comment beside the field is what people read, so it must not say something else.
TEST(FieldRules, DefaultsAreThoseOfTheProtoComments) {
  const std::map<std::string, std::string> messages{{"ModelConfig", "model."},
                                                    {"AttentionConfig", "model.attention."},
                                                    {"MoeConfig", "model.moe."},
                                                    {"MeshConfig", "mesh."},
                                                    {"DataConfig", "data."},
                                                    {"BatchConfig", "batch."},
                                                    {"OptimizerConfig", "optimizer."},
                                                    {"ScheduleConfig", "schedule."},
                                                    {"SparsityConfig", "sparsity."},
                                                    {"CheckpointConfig", "checkpoint."},
                                                    {"RuntimeConfig", "runtime."},
                                                    {"WatchConfig", "watch."},
                                                    {"CurriculumConfig", "curriculum."},
                                                    {"WholePoint", "curriculum.point."},
                                                    {"Point", "curriculum.point."},
                                                    {"SourceConfig", "curriculum.sources."},
                                                    {"HookConfig", "hooks."},
                                                    {"MonitorConfig", "monitor."},
                                                    {"GateControlConfig", "gate_control."},
                                                    {"TrainConfig", ""}};
  const std::regex message("message (\\w+) \\{");
  const std::regex field("^  (?:optional )?\\w+ (\\w+) = \\d+;");
  const std::regex standard("[dD]efault (true|false|[0-9.e-]*[0-9])");
  int compared = 0;
  for (const char* file :
       {"model/model.proto", "parallel/mesh.proto", "runtime/config/train.proto"}) {
    std::ifstream in(std::filesystem::path(SOURCE_ROOT) / file);
    std::string prefix;
    for (std::string line; std::getline(in, line);) {
      std::smatch match;
      if (std::regex_match(line, match, message)) prefix = messages.at(match[1]);
      std::smatch value;
      if (!std::regex_search(line, match, field)) continue;
      if (!std::regex_search(line, value, standard)) continue;
      const std::string text = value[1];
      const double stated = text == "true" ? 1 : text == "false" ? 0 : std::stod(text);
      const FieldRule* rule = rule_of(prefix + std::string(match[1]));
      if (rule == nullptr || !rule->standard) continue;
      EXPECT_DOUBLE_EQ(*rule->standard, stated) << file << ": " << line;
      ++compared;
    }
  }
  EXPECT_GE(compared, 35);
}

TEST(NumberField, ReadsAndWritesEveryKind) {
  TrainConfig config;
  NumberField steps(config, "steps");
  EXPECT_FALSE(steps.is_set());
  steps.set(1e12);
  EXPECT_EQ(config.steps(), 1000000000000);
  EXPECT_TRUE(steps.is_set());
  EXPECT_EQ(steps.get(), 1e12);
  NumberField(config, "model.qk_norm").set(1);
  EXPECT_TRUE(config.model().qk_norm());
  NumberField(config, "optimizer.beta1").set(0.25);
  EXPECT_EQ(config.optimizer().beta1(), 0.25);
  NumberField(config, "model.init_std").set(0.5);
  EXPECT_EQ(config.model().init_std(), 0.5f);
}

TEST(NumberField, DoesNotMakeExpertsWhereThereAreNone) {
  TrainConfig config;
  EXPECT_FALSE(NumberField(config, "model.moe.experts").reachable());
  EXPECT_FALSE(config.model().has_moe());
  config.mutable_model()->mutable_moe();
  EXPECT_TRUE(NumberField(config, "model.moe.experts").reachable());
}

}  // namespace
}  // namespace tessera
