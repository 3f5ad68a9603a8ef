#include "runtime/config/differences.h"

#include <gtest/gtest.h>

#include "tests/model/tiny_model.h"

namespace tessera {
namespace {

using support::tiny_config;

TEST(ConfigDifferences, EveryFieldThatSaysSomethingElseIsNamed) {
  const TrainConfig before = tiny_config();
  EXPECT_TRUE(config_differences(before, before).empty());
  EXPECT_TRUE(config_differences(before, tiny_config({"run_dir=\"elsewhere\""})).empty());
  const std::vector<std::string> expected{
      "model.attention.global_groups: 1 -> 2", "model.smear_tokens: 2 -> 0",
      "optimizer.learning_rate: 0.01 -> 0.02", "runtime.device: CPU -> GPU"};
  EXPECT_EQ(config_differences(
                before, tiny_config({"runtime.device=GPU", "optimizer.learning_rate=0.02",
                                     "model.smear_tokens=0", "model.attention.global_groups=2"})),
            expected);
}

TEST(ConfigDifferences, PartsThatAreNewOrGoneAreToldAsAWhole) {
  const std::vector<std::string> gone =
      config_differences(tiny_config(), tiny_config({"model.moe="}));
  ASSERT_EQ(gone.size(), 1u);
  EXPECT_TRUE(gone[0].starts_with("model.moe: { experts: 4 ")) << gone[0];
  EXPECT_TRUE(gone[0].ends_with(" } -> nothing")) << gone[0];
  const std::vector<std::string> hook =
      config_differences(tiny_config(), tiny_config({"hooks=[{name: \"h\" library: \"a.so\"}]"}));
  EXPECT_EQ(hook,
            std::vector<std::string>{"hooks[0]: nothing -> { name: \"h\" library: \"a.so\" }"});
}

}  // namespace
}  // namespace tessera
