#include "kernels/core/event.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/core/copy.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(Event, IsPassedBeforeItsFirstRecord) {
  const Event event(support::device());
  EXPECT_TRUE(event.passed());
  event.wait();
  Stream stream(support::device());
  event.hold(stream);
  stream.synchronize();
}

// The second stream reads what the first has written, and the host what the second has.
TEST(Event, OrdersStreamsAndTheHost) {
  Stream writer(support::device());
  Stream reader(support::device());
  const int64_t bytes = 1 << 20;
  const Buffer source = Buffer::pinned(support::device(), bytes);
  const Buffer data(support::device(), bytes);
  const Buffer back = Buffer::pinned(support::device(), bytes);
  Event written(support::device());
  Event read(support::device());
  for (uint8_t round = 1; round < 4; ++round) {
    const auto values = source.view(DType::kU8, {bytes}).as<uint8_t>();
    std::fill(values.begin(), values.end(), round);
    copy(writer, source.view(DType::kU8, {bytes}), data.view(DType::kU8, {bytes}));
    written.record(writer);
    written.hold(reader);
    copy(reader, data.view(DType::kU8, {bytes}), back.view(DType::kU8, {bytes}));
    read.record(reader);
    read.wait();
    EXPECT_TRUE(read.passed());
    EXPECT_TRUE(written.passed());
    EXPECT_EQ(back.view(DType::kU8, {bytes}).as<uint8_t>().back(), round);
  }
}

TEST(Event, Moves) {
  Stream stream(support::device());
  std::vector<Event> events;
  events.emplace_back(support::device());
  events.emplace_back(support::device());
  events.front().record(stream);
  events.erase(events.begin());
  events.front().record(stream);
  events.front().wait();
  EXPECT_TRUE(events.front().passed());
}

TEST(Event, TellsTheTimeBetweenTwoPoints) {
  Stream stream(support::device());
  const int64_t bytes = 1 << 20;
  const Buffer from(support::device(), bytes);
  const Buffer to(support::device(), bytes);
  std::vector<Event> events;
  for (int i = 0; i < 3; ++i) events.emplace_back(support::device(), /*timed=*/true);
  events[0].record(stream);
  copy(stream, from.view(DType::kU8, {bytes}), to.view(DType::kU8, {bytes}));
  events[1].record(stream);
  for (int i = 0; i < 20; ++i) {
    copy(stream, from.view(DType::kU8, {bytes}), to.view(DType::kU8, {bytes}));
  }
  events[2].record(stream);
  events[2].wait();
  const double all = events[2].milliseconds_since(events[0]);
  EXPECT_GT(all, 0);
  EXPECT_LT(all, 10000);
  EXPECT_GE(events[1].milliseconds_since(events[0]), 0);
  EXPECT_LT(events[1].milliseconds_since(events[0]), all);
  EXPECT_NEAR(events[1].milliseconds_since(events[0]) + events[2].milliseconds_since(events[1]),
              all, 0.05);
  const Event plain(support::device());
  support::expect_error([&] { plain.milliseconds_since(events[0]); },
                        "Event::milliseconds_since: both events must be timed");
}

TEST(Event, IsForStreamsOfItsDevice) {
  Stream plan(Device{DeviceKind::kPlan});
  Event event(support::device());
  support::expect_error([&] { event.record(plan); },
                        "Event::record: the stream is on another device");
  support::expect_error([&] { event.hold(plan); }, "Event::hold: the stream is on another device");
  Event(Device{DeviceKind::kPlan}).record(plan);
}

}  // namespace
}  // namespace tessera
