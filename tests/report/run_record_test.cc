#include "runtime/report/run_record.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/core/error.h"
#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

bool has(const std::vector<std::string>& texts, const std::string& text) {
  return std::find(texts.begin(), texts.end(), text) != texts.end();
}

TEST(RunRecord, OtherDirectoriesAreRefused) {
  const TemporaryDirectory run;
  try {
    (void)read_run(run.path());
    ADD_FAILURE() << "it was read";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("is no run directory"), std::string::npos);
  }
}

TEST(RunRecord, SaysWhatIsMissing) {
  const TemporaryDirectory run;
  run.write("metrics.jsonl", "{\"step\":1,\"steps\":9}\nbroken\n{\"step\":4,\"steps\":9}\n");
  run.write("heatmaps/step-00000002-layer-00-group-00.csv", "broken");
  const RunRecord record = read_run(run.path());
  EXPECT_EQ(record.status, "at step 4 of 9");
  EXPECT_TRUE(has(record.gaps, "config.resolved.textproto is missing or empty"));
  EXPECT_TRUE(has(record.gaps, "metrics.jsonl: 1 of 3 lines is damaged and left out"));
  EXPECT_TRUE(has(record.gaps, "metrics.jsonl lacks 2 steps in between"));
  EXPECT_TRUE(has(record.gaps, "heatmaps: 1 files are damaged and left out"));
  EXPECT_TRUE(
      has(record.gaps, "log.txt is missing: the timeline lacks starts, saves and warnings"));
}

TEST(RunRecord, ARunThatHasJustBegun) {
  const TemporaryDirectory run;
  run.write("config.resolved.textproto", "this is no configuration {");
  const RunRecord record = read_run(run.path());
  EXPECT_EQ(record.status, "no step is done yet");
  EXPECT_TRUE(has(record.gaps, "metrics.jsonl is missing"));
  EXPECT_TRUE(std::any_of(record.gaps.begin(), record.gaps.end(), [](const std::string& gap) {
    return gap.starts_with("config.resolved.textproto is not understood");
  }));
}

TEST(RunRecord, OrdersWhatHappenedByStep) {
  const TemporaryDirectory run;
  run.write("metrics.jsonl",
            "{\"step\":1,\"steps\":3}\n{\"step\":2,\"steps\":3}\n"
            "{\"step\":2,\"steps\":3}\n{\"step\":3,\"steps\":3}\n");
  run.write("log.txt", "06:00:00 saved runs/a/checkpoints/step-00000003: 1 MiB\n");
  run.write("gate_changes.jsonl",
            "{\"step\":2,\"layer\":1,\"what\":\"kept_blocks\",\"old\":4,\"new\":5,"
            "\"reason\":\"kept mass 0.9\"}\n");
  const RunRecord record = read_run(run.path());
  EXPECT_EQ(record.status, "finished, 3 steps");
  ASSERT_EQ(record.events.size(), 3u);
  EXPECT_EQ(record.events[0].text, "layer 1: kept_blocks from 4 to 5, kept mass 0.9");
  EXPECT_EQ(record.events[1].kind, RunEvent::Kind::kResume);
  EXPECT_EQ(record.events[2].step, 3);
}

TEST(RunRecord, AHangIsTheFirstThingToLookAt) {
  const TemporaryDirectory run;
  run.write("metrics.jsonl", "{\"step\":1,\"steps\":3}\n");
  run.write("flight/hang.txt", "HANG");
  const RunRecord record = read_run(run.path());
  ASSERT_FALSE(record.warnings.empty());
  EXPECT_TRUE(record.warnings[0].text.starts_with("the last start hung or crashed"));
}

}  // namespace
}  // namespace tessera
