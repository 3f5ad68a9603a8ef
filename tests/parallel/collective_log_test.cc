#include "parallel/collective_log.h"

#include <gtest/gtest.h>

#include "tests/support/compare.h"

namespace tessera {
namespace {

CollectiveRecord record(Collective operation, int64_t number, int64_t sent, int64_t received) {
  CollectiveRecord record;
  record.operation = operation;
  record.number = number;
  record.sent = sent;
  record.received = received;
  return record;
}

TEST(CollectiveLog, KeepsTheLastRecordsAndAllSums) {
  CollectiveLog log;
  const CollectiveLog::Group world = log.add("world", 0, 0, 2);
  const CollectiveLog::Group tensor = log.add("tensor", 4, 1, 2);
  const CollectiveLog::Group again_world = log.add("world", 0, 0, 2);
  EXPECT_EQ(again_world.sums, world.sums);
  EXPECT_NE(again_world.entry, world.entry);
  EXPECT_EQ(log.communicators(), (std::vector<std::string>{"world", "tensor"}));
  const int64_t first = log.start(tensor, record(Collective::kAllToAll, 0, 10, 20));
  log.set_place(5, 2);
  for (int64_t i = 0; i < FlightMap::kRecords; ++i) {
    const int64_t index = log.start(world, record(Collective::kAllReduce, i, 3, 4));
    EXPECT_EQ(log.record(index).completed, 0);
    log.complete(index);
  }
  EXPECT_EQ(log.size(), FlightMap::kRecords + 1);
  support::expect_error([&] { log.record(first); },
                        "collective_log: record is 0, expected 1 to 4096");
  const CollectiveRecord last = log.record(FlightMap::kRecords);
  EXPECT_EQ(log.name_of_group(last), "world");
  EXPECT_EQ(last.number, FlightMap::kRecords - 1);
  EXPECT_EQ(last.step, 5);
  EXPECT_EQ(last.layer, 2);
  EXPECT_GE(last.completed, last.started);
  // The first record is gone, and the one in its place has not ended yet.
  const int64_t again = log.start(world, record(Collective::kBarrier, 0, 0, 0));
  log.complete(first);
  EXPECT_EQ(log.record(again).completed, 0);
  EXPECT_EQ(log.traffic("tensor", Collective::kAllToAll), (Traffic{1, 10, 20}));
  EXPECT_EQ(log.traffic("world", Collective::kAllReduce), (Traffic{4096, 3 * 4096, 4 * 4096}));
  EXPECT_EQ(log.traffic("world"), (Traffic{4097, 3 * 4096, 4 * 4096}));
  EXPECT_EQ(log.traffic("nobody"), Traffic{});
}

TEST(CollectiveLog, CutsLongNames) {
  CollectiveLog log;
  const std::string name(50, 'x');
  const int64_t index = log.start(log.add(name, 0, 0, 1), record(Collective::kBarrier, 0, 1, 1));
  EXPECT_EQ(log.name_of_group(log.record(index)), std::string(35, 'x'));
  EXPECT_EQ(log.traffic(name), (Traffic{1, 1, 1}));
}

TEST(CollectiveLog, CompletesAnExchangeWhenItsStreamIsPastIt) {
  CollectiveLog log;
  Stream stream(support::device());
  const CollectiveLog::Group world = log.add("world", 0, 0, 2);
  for (int64_t number = 0; number < 3; ++number) {
    const int64_t index = log.start(world, record(Collective::kAllReduce, number, 1, 1));
    if (number > 0) log.begin_behind(index, stream);
    log.look_at_streams();
    EXPECT_EQ(log.record(index).completed, 0);
    log.end_behind(index, stream);
    log.end_behind(index, stream);
    EXPECT_EQ(log.record(index).completed, 0);
    stream.synchronize();
    log.look_at_streams();
    const int64_t completed = log.record(index).completed;
    EXPECT_GT(completed, 0);
    log.end_behind(index, stream);  // as the wait does after a start that said so
    stream.synchronize();
    log.look_at_streams();
    EXPECT_EQ(log.record(index).completed, completed);
  }
}

TEST(CollectiveLog, TheHostIsBlockedInTheExchangeThatItsStreamIsIn) {
  CollectiveLog log;
  Stream stream(support::device());
  const CollectiveLog::Group world = log.add("world", 0, 0, 2);
  const int64_t first = log.start(world, record(Collective::kAllReduce, 0, 1, 1));
  const int64_t second = log.start(world, record(Collective::kAllReduce, 1, 1, 1));
  const FlightState& state = log.map().state;
  log.begin_behind(first, stream);
  log.begin_behind(second, stream);
  stream.synchronize();
  log.look_at_streams();
  EXPECT_EQ(state.waits_in, -1) << "the host does not wait";
  {
    const StreamWait wait(log);
    log.look_at_streams();
    EXPECT_EQ(state.waits_in, first);
    log.end_behind(first, stream);
    stream.synchronize();
    log.look_at_streams();
    EXPECT_EQ(state.waits_in, second);
  }
  EXPECT_EQ(state.waits_in, -1);
  EXPECT_GT(state.waited, 0);
}

}  // namespace
}  // namespace tessera
