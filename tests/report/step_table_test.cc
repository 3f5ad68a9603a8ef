#include "runtime/report/step_table.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

StepTable table_of(std::string_view text) {
  const TemporaryDirectory run;
  return read_steps(run.write("metrics.jsonl", text));
}

TEST(StepTable, HasAColumnForEveryNumber) {
  const StepTable table = table_of(
      "{\"step\":1,\"steps\":9,\"loss\":2.5,\"stage\":\"dense\",\"skipped\":false,\"list\":[1]}\n"
      "{\"step\":2,\"steps\":9,\"loss\":null,\"stage\":\"tuning\",\"skipped\":true,\"new\":7}\n");
  ASSERT_EQ(table.steps, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(table.stages, (std::vector<std::string>{"dense", "tuning"}));
  EXPECT_EQ(table.planned_steps, 9);
  ASSERT_EQ(table.column("loss").size(), 2u);
  EXPECT_EQ(table.column("loss")[0], 2.5);
  EXPECT_TRUE(std::isnan(table.column("loss")[1]));
  EXPECT_EQ(table.column("skipped"), (std::vector<double>{0, 1}));
  EXPECT_TRUE(std::isnan(table.column("new")[0]));
  EXPECT_EQ(table.column("new")[1], 7);
  EXPECT_TRUE(table.column("list").empty());
  EXPECT_TRUE(table.column("nothing").empty());
}

TEST(StepTable, TheLaterOfTwoLinesIsRight) {
  const StepTable table = table_of(
      "{\"step\":1,\"loss\":1}\n{\"step\":2,\"loss\":2}\n{\"step\":3,\"loss\":3}\n"
      "{\"step\":4,\"loss\":4}\n{\"step\":2,\"loss\":20}\n{\"step\":3,\"loss\":30}\n");
  // Step 4 of the earlier start is not of the run as it is now.
  EXPECT_EQ(table.steps, (std::vector<int64_t>{1, 2, 3}));
  EXPECT_EQ(table.column("loss"), (std::vector<double>{1, 20, 30}));
  ASSERT_EQ(table.repetitions.size(), 1u);
  EXPECT_EQ(table.repetitions[0].first_step, 2);
  EXPECT_EQ(table.repetitions[0].repeated, 3);
}

TEST(StepTable, CountsDamagedLinesAndLeavesOutTheUnfinishedOne) {
  const StepTable table = table_of(
      "{\"step\":1,\"loss\":1}\n{\"step\":2,\"lo\n\n[]\n{\"step\":-3}\n{\"step\":\"4\"}\n"
      "{\"step\":5,\"loss\":5}\n{\"step\":6,\"loss\":6}");
  EXPECT_EQ(table.steps, (std::vector<int64_t>{1, 5}));
  EXPECT_TRUE(table.lines.exists);
  EXPECT_EQ(table.lines.lines, 7);
  EXPECT_EQ(table.lines.damaged, 5);
}

TEST(StepTable, NoFileIsNoSteps) {
  const StepTable table = read_steps("/nowhere/metrics.jsonl");
  EXPECT_FALSE(table.lines.exists);
  EXPECT_EQ(table.rows(), 0u);
}

}  // namespace
}  // namespace tessera
