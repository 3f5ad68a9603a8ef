#include "runtime/watch/flight_story.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "kernels/core/error.h"
#include "parallel/flight_recorder.h"
#include "tests/watch/imagined_job.h"

namespace tessera {
namespace {

TEST(FlightStory, PutsRanksTogetherThatAreAtTheSame) {
  ImaginedJob job;
  for (const int r : {0, 1, 3}) job.block(r, ImaginedJob::kWorld);
  EXPECT_EQ(where_ranks_are(job.reports()),
            "rank 2: step 7 forward layer 1, process S (sleeping), in no exchange\n"
            "ranks 0, 1 and 3: step 7 forward layer 1, process S (sleeping), in world #0 "
            "all_reduce f32[64] at model/moe.cc:10\n");
}

TEST(FlightStory, ListsExchanges) {
  ImaginedJob job;
  job.exchange(2, ImaginedJob::kTensor);
  job.exchange(2, ImaginedJob::kTensor, {.line = 11});
  job.block(2, ImaginedJob::kWorld);
  EXPECT_EQ(last_exchanges(job.rank(2), 2),
            "    59.000 s ago  step 7 forward layer 1  tensor of rank 2 #1 all_reduce f32[64] at "
            "model/moe.cc:11, took 1000.000 ms\n"
            "    59.000 s ago  step 7 forward layer 1  world #0 all_reduce f32[64] at "
            "model/moe.cc:10, waits in it\n");
}

TEST(FlightStory, ReadsWhatARunLeft) {
  const std::filesystem::path flight =
      std::filesystem::path(testing::TempDir()) / concat("story-", getpid());
  std::filesystem::create_directories(flight);
  for (const int rank : {1, 0}) {
    FlightRecorder recorder;
    recorder.set_identity(rank, 2, "n1");
    recorder.add_group("world", 0, rank, 2);
    recorder.keep_in(flight / concat("ring-0000", rank));
  }
  std::ofstream(flight / "hang.txt") << "HANG";
  const auto reports = read_flight(flight);
  ASSERT_EQ(reports.size(), 2u);
  EXPECT_EQ(reports[0].rank, 0);
  EXPECT_EQ(reports[1].groups.size(), 1u);
  std::ofstream(flight / "ring-00002") << "damaged";
  EXPECT_THROW(read_flight(flight), Error);
  std::filesystem::remove_all(flight);
}

}  // namespace
}  // namespace tessera
