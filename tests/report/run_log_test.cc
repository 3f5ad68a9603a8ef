#include "runtime/report/run_log.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

using Kind = RunEvent::Kind;

TEST(RunLog, FindsWhatHappened) {
  const TemporaryDirectory run;
  const std::vector<RunEvent> events = read_log(run.write(
      "log.txt",
      "06:11:35 [rank 0/8] ranks 8, threads per rank 2, bf16\n"
      "parameters: 1711556, of which one token meets 825472\n"
      "06:11:36 [rank 0/8] resumed from runs/a/checkpoints/step-00000100 after step 100: read 23\n"
      "06:11:36 [rank 0/8] changed since the checkpoint: steps: 200 -> 300\n"
      "06:11:37 [rank 0/8] step 101 is bit-exact: its parameters are those of\n"
      "06:11:41 [rank 0/8] step 110/300  tokens 10240  loss 4.2979  grad 1.748\n"
      "06:11:42 [rank 0/8] warning: cannot write runs/a/metrics.jsonl: No space left\n"
      "06:11:43 [rank 0/8] step 115 is skipped: loss spike (loss 9, gradient norm 2)\n"
      "06:11:44 [rank 0/8] quality guard: the dense stage had fewer than 64 steps, which show no "
      "trend; the transition will not wait\n"
      "06:11:45 [rank 0/8] quality guard: after step 129 the transition waits: the loss is 1 nats\n"
      "06:11:46 [rank 0/8] quality guard: after step 161 the transition goes on: the loss is 0\n"
      "06:12:14 saved runs/a/checkpoints/step-00000200: 23.3 MiB, written in 153 ms\n"
      "06:12:15 [rank 0/8] 8 of 8 ranks were asked to stop: saving after step 207\n"
      "half a li"));
  const std::vector<std::pair<Kind, int64_t>> expected{
      {Kind::kStart, 100},   {Kind::kResume, 100}, {Kind::kResume, 100}, {Kind::kResume, 101},
      {Kind::kWarning, 110}, {Kind::kSkip, 115},   {Kind::kHold, 129},   {Kind::kHold, 161},
      {Kind::kSave, 200},    {Kind::kStop, 207}};
  ASSERT_EQ(events.size(), expected.size());
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i].kind, expected[i].first) << events[i].text;
    EXPECT_EQ(events[i].step, expected[i].second) << events[i].text;
  }
  EXPECT_EQ(events[0].clock, "06:11:35");
  EXPECT_EQ(events[0].text, "ranks 8, threads per rank 2, bf16");
}

TEST(RunLog, NoLogIsNoEvents) {
  EXPECT_TRUE(read_log("/nowhere/log.txt").empty());
}

}  // namespace
}  // namespace tessera
