#include "runtime/train/step_traffic.h"

#include <gtest/gtest.h>

#include <map>

#include "parallel/self_communicator.h"

namespace tessera {
namespace {

TEST(StepTraffic, FindsEachGroupOnceAndTheBlocksThatItLiesIn) {
  SelfCommunicator world(5, 24);
  const ProcessMesh mesh(world, {.data = 1, .expert = 2, .sequence = 3, .tensor = 4});
  std::map<std::string, std::pair<int, int>> found;
  for (const GroupTraffic& group : traffic_of(mesh)) {
    EXPECT_TRUE(found.insert({group.group, {group.ranks, group.block}}).second) << group.group;
  }
  const std::map<std::string, std::pair<int, int>> expected{{"tensor", {4, 4}},
                                                            {"sequence", {3, 12}},
                                                            {"expert", {2, 24}},
                                                            {"sequence*tensor", {12, 12}},
                                                            {"data*expert*sequence", {6, 24}},
                                                            {"world", {24, 24}}};
  EXPECT_EQ(found, expected);
}

TEST(StepTraffic, PrintsOneColumnForEachStep) {
  const GroupTraffic tensor{.group = "tensor", .ranks = 2, .block = 2, .traffic = {3, 3 << 20, 0}};
  const GroupTraffic world{
      .group = "world", .ranks = 4, .block = 4, .traffic = {1, 1 << 20, 1 << 19}};
  const StepTraffic dense{.step = 1, .stage = Stage::kDense, .groups = {tensor, world}};
  const StepTraffic tuning{.step = 9, .stage = Stage::kTuning, .groups = {world, world}};
  EXPECT_EQ(dense.sent(), 4 << 20);
  EXPECT_EQ(dense.received(), 1 << 19);
  const std::string text = to_text({dense, tuning});
  EXPECT_NE(text.find("  tensor                     2                 3.00 (0.00)"
                      "                 1.00 (0.50)\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("4.00 (0.50)                 2.00 (1.00)\n"), std::string::npos) << text;
  EXPECT_EQ(to_text(std::vector<StepTraffic>{}), "");
}

}  // namespace
}  // namespace tessera
