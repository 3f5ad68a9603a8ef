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
  const int world = log.add("world");
  const int tensor = log.add("tensor");
  EXPECT_EQ(log.add("world"), world);
  EXPECT_EQ(log.communicators(), (std::vector<std::string>{"world", "tensor"}));
  const int64_t first = log.start(tensor, record(Collective::kAllToAll, 0, 10, 20));
  log.set_place(5, 2);
  for (int64_t i = 0; i < CollectiveLog::kCapacity; ++i) {
    const int64_t index = log.start(world, record(Collective::kAllReduce, i, 3, 4));
    EXPECT_FALSE(log.record(index).completed);
    log.complete(index);
  }
  EXPECT_EQ(log.size(), CollectiveLog::kCapacity + 1);
  support::expect_error([&] { log.record(first); },
                        "collective_log: record is 0, expected 1 to 4096");
  const CollectiveRecord last = log.record(CollectiveLog::kCapacity);
  EXPECT_STREQ(last.communicator.data(), "world");
  EXPECT_EQ(last.number, CollectiveLog::kCapacity - 1);
  EXPECT_EQ(last.step, 5);
  EXPECT_EQ(last.layer, 2);
  EXPECT_TRUE(last.completed);
  // The first record is gone, and the one in its place has not ended yet.
  const int64_t again = log.start(world, record(Collective::kBarrier, 0, 0, 0));
  log.complete(first);
  EXPECT_FALSE(log.record(again).completed);
  EXPECT_EQ(log.traffic("tensor", Collective::kAllToAll), (Traffic{1, 10, 20}));
  EXPECT_EQ(log.traffic("world", Collective::kAllReduce), (Traffic{4096, 3 * 4096, 4 * 4096}));
  EXPECT_EQ(log.traffic("world"), (Traffic{4097, 3 * 4096, 4 * 4096}));
  EXPECT_EQ(log.traffic("nobody"), Traffic{});
}

TEST(CollectiveLog, CutsLongNames) {
  CollectiveLog log;
  const std::string name(50, 'x');
  const int64_t index = log.start(log.add(name), record(Collective::kBarrier, 0, 1, 1));
  EXPECT_EQ(std::string(log.record(index).communicator.data()), std::string(31, 'x'));
  EXPECT_EQ(log.traffic(name), (Traffic{1, 1, 1}));
}

TEST(Collective, HasNames) {
  EXPECT_STREQ(name_of(Collective::kAllReduce), "all_reduce");
  EXPECT_STREQ(name_of(Collective::kExchangeRows), "exchange_rows");
  EXPECT_STREQ(name_of(Collective::kSplit), "split");
}

}  // namespace
}  // namespace tessera
