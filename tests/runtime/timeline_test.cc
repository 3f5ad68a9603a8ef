#include "runtime/trace/timeline.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>

namespace tessera {
namespace {

using Kind = TraceSpan::Kind;

class TimelineTest : public testing::Test {
 protected:
  TimelineTest() {
    pair_ = recorder_.add_group("tensor", 0, 0, 2);
    alone_ = recorder_.add_group("data", 0, 0, 1);
  }

  int64_t start(int group) {
    CollectiveRecord record;
    record.group = group;
    record.number = number_++;
    record.operation = Collective::kAllGather;
    return recorder_.start(record);
  }
  void block(int group) {
    const int64_t index = start(group);
    recorder_.begin_wait(index);
    recorder_.complete(index);
    recorder_.end_wait();
  }
  static std::vector<TraceSpan> of(Kind kind, const Timeline& timeline) {
    std::vector<TraceSpan> found;
    for (const TraceSpan& span : timeline.events().spans) {
      if (span.kind == kind) found.push_back(span);
    }
    return found;
  }
  static void expect_inside(const TraceSpan& inner, const TraceSpan& outer) {
    EXPECT_GE(inner.begin, outer.begin);
    EXPECT_LE(inner.end, outer.end);
    EXPECT_LE(inner.begin, inner.end);
  }

  FlightRecorder recorder_;
  int pair_ = -1;
  int alone_ = -1;
  int64_t number_ = 0;
};

TEST_F(TimelineTest, SpansAreWithinEachOther) {
  recorder_.set_phase(Phase::kBetweenSteps);
  Timeline timeline(recorder_);
  recorder_.set_step(7);
  recorder_.set_phase(Phase::kForward);
  recorder_.set_layer(0);
  block(pair_);
  recorder_.set_layer(1);
  recorder_.set_layer(-1);
  recorder_.set_phase(Phase::kBackward);
  recorder_.set_layer(1);
  recorder_.finish_step();  // ends a layer that nobody has left, too
  timeline.close();
  const auto steps = of(Kind::kStep, timeline);
  const auto phases = of(Kind::kPhase, timeline);
  const auto layers = of(Kind::kLayer, timeline);
  const auto waits = of(Kind::kWait, timeline);
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_EQ(steps[0].step, 7);
  ASSERT_EQ(phases.size(), 4u);
  EXPECT_EQ(phases[0].phase, Phase::kBetweenSteps);
  EXPECT_EQ(phases[1].phase, Phase::kForward);
  EXPECT_EQ(phases[2].phase, Phase::kBackward);
  EXPECT_EQ(phases[3].phase, Phase::kBetweenSteps);
  EXPECT_LE(phases[0].end, steps[0].begin);
  EXPECT_GE(phases[3].begin, steps[0].end);
  expect_inside(phases[1], steps[0]);
  expect_inside(phases[2], steps[0]);
  ASSERT_EQ(layers.size(), 3u);
  EXPECT_EQ(layers[0].layer, 0);
  EXPECT_EQ(layers[1].layer, 1);
  EXPECT_LE(layers[0].end, layers[1].begin);
  expect_inside(layers[1], phases[1]);
  expect_inside(layers[2], phases[2]);
  ASSERT_EQ(waits.size(), 1u);
  expect_inside(waits[0], layers[0]);
  EXPECT_EQ(waits[0].group, pair_);
  EXPECT_EQ(waits[0].operation, Collective::kAllGather);
}

TEST_F(TimelineTest, TellsExchangesThatBlockFromThoseThatOverlap) {
  const int64_t before = start(pair_);
  Timeline timeline(recorder_);
  recorder_.complete(before);  // began before the trace
  block(pair_);
  block(alone_);  // nobody else is there
  const int64_t overlapped = start(pair_);
  recorder_.set_phase(Phase::kUpdate);
  recorder_.begin_wait(overlapped);
  recorder_.complete(overlapped);
  recorder_.end_wait();
  // One that blocks may wait in its start and in its end.
  const int64_t twice = start(pair_);
  for (int i = 0; i < 2; ++i) {
    recorder_.begin_wait(twice);
    recorder_.end_wait();
  }
  recorder_.complete(twice);
  const int64_t first = start(pair_);
  const int64_t second = start(pair_);
  recorder_.begin_wait(second);
  recorder_.complete(second);
  recorder_.end_wait();
  timeline.close();
  const auto& exchanges = timeline.events().exchanges;
  ASSERT_EQ(exchanges.size(), 5u);
  EXPECT_FALSE(exchanges[0].overlapped);
  EXPECT_TRUE(exchanges[1].overlapped);
  EXPECT_EQ(exchanges[1].record.index, overlapped);
  EXPECT_GE(exchanges[1].wait_began, exchanges[1].record.started);
  EXPECT_FALSE(exchanges[2].overlapped);
  EXPECT_FALSE(exchanges[3].overlapped) << "nothing came between its start and its wait";
  EXPECT_FALSE(exchanges[4].finished);
  EXPECT_EQ(exchanges[4].record.index, first);
  EXPECT_GE(exchanges[4].record.completed, exchanges[4].record.started);
  EXPECT_EQ(of(Kind::kWait, timeline).size(), 4u);
  EXPECT_EQ(timeline.events().dropped, 0);
}

TEST_F(TimelineTest, CountsWhatItHasNoRoomFor) {
  Timeline timeline(recorder_, /*spans=*/4, /*exchanges=*/2);
  for (int i = 0; i < 10; ++i) block(pair_);
  EXPECT_EQ(timeline.events().spans.size(), 4u);
  EXPECT_EQ(timeline.events().exchanges.size(), 2u);
  EXPECT_EQ(timeline.events().dropped, 6 + 8);
  timeline.clear();
  block(pair_);
  EXPECT_EQ(timeline.events().spans.size(), 1u);
  EXPECT_EQ(timeline.events().exchanges.size(), 1u);
}

TEST_F(TimelineTest, HearsNothingOnceItIsGoneOrClosed) {
  {
    Timeline timeline(recorder_);
    timeline.close();
    const size_t spans = timeline.events().spans.size();
    recorder_.set_step(1);
    recorder_.finish_step();
    EXPECT_EQ(timeline.events().spans.size(), spans);
  }
  { const Timeline timeline(recorder_); }
  block(pair_);
}

TEST(StageTrack, SpansLeadToStages) {
  StageTrack track;
  track.reach("snapshot taken");  // nobody asked yet
  track.start();
  track.reach("snapshot taken");
  std::thread([&] {
    track.reach("shard header written");
    for (int tensor = 0; tensor < 3; ++tensor) track.reach("tensor written");
    track.reach("shard synced");
  }).join();
  const std::vector<TraceStage> stages = track.take();
  ASSERT_EQ(stages.size(), 4u);
  EXPECT_EQ(stages[0].begin, stages[0].end);
  EXPECT_EQ(stages[1].begin, stages[1].end);
  EXPECT_EQ(std::string(stages[2].name), "tensor written");
  EXPECT_EQ(stages[2].times, 3);
  EXPECT_EQ(stages[2].begin, stages[1].end);
  EXPECT_EQ(stages[3].begin, stages[2].end);
  EXPECT_TRUE(track.take().empty());
  track.stop();
  track.reach("committed");
  EXPECT_TRUE(track.take().empty());
}

}  // namespace
}  // namespace tessera
