#include "runtime/watch/hang_report.h"

#include <gtest/gtest.h>

#include "tests/watch/imagined_job.h"

namespace tessera {
namespace {

using Ranks = std::vector<int>;

constexpr int kWorld = ImaginedJob::kWorld;
constexpr int kTensor = ImaginedJob::kTensor;

TEST(HangReport, FindsNothingInNoRanks) {
  EXPECT_EQ(diagnose({}).kind, HangKind::kNothing);
}

TEST(HangReport, NamesTheRankThatDidNotCome) {
  ImaginedJob job;
  for (int r = 0; r < 4; ++r) job.exchange(r, kWorld);
  for (const int r : {0, 1, 3}) job.block(r, kWorld);
  job.rank(2).state.process_state = 'R';
  const HangReport found = diagnose(job.reports());
  EXPECT_EQ(found.kind, HangKind::kLocal);
  EXPECT_EQ(found.culprits, Ranks{2});
  EXPECT_EQ(found.hosts, std::vector<std::string>{"n2"});
  EXPECT_EQ(found.sentence,
            "step 7 phase forward layer 1 after 60.0 s: rank 2 (n2) did not enter world #1 "
            "all_reduce f32[64] at model/moe.cc:10");
  EXPECT_EQ(found.evidence,
            "3/4 ranks of world wait in #1; rank 2 last completed #0 58.0 s ago; it is in step 7 "
            "phase forward layer 1 since 59.0 s, process state R (running), heartbeat 0.2 s ago");
}

// 0 waits for 1 in their tensor group, 1 and 3 for 2 in the world: 2 is the cause of all.
TEST(HangReport, FollowsTheWaitingToItsEnd) {
  ImaginedJob job;
  job.block(0, kTensor);
  job.block(1, kWorld);
  job.block(3, kWorld);
  const HangReport found = diagnose(job.reports());
  EXPECT_EQ(found.kind, HangKind::kLocal);
  EXPECT_EQ(found.culprits, Ranks{2});
  EXPECT_NE(found.sentence.find("rank 2 (n2) did not enter world #0"), std::string::npos)
      << found.sentence;
  EXPECT_NE(found.evidence.find("1 other group waits behind it"), std::string::npos)
      << found.evidence;
}

TEST(HangReport, NamesTheStoppedRankInsideAnExchange) {
  ImaginedJob job;
  for (int r = 0; r < 4; ++r) job.block(r, kTensor);
  job.rank(3).state.process_state = 'T';
  job.rank(3).concern = Concern::kStopped;
  const HangReport found = diagnose(job.reports());
  EXPECT_EQ(found.kind, HangKind::kLocal);
  EXPECT_EQ(found.culprits, Ranks{3});
  EXPECT_NE(found.sentence.find("rank 3 (n2) entered, and does not complete, tensor of rank 2 #0"),
            std::string::npos)
      << found.sentence;
  EXPECT_NE(found.evidence.find("process state T (stopped)"), std::string::npos);
}

TEST(HangReport, NamesAStoppedRankForWhichNobodyWaitsYet) {
  ImaginedJob job;
  job.rank(1).concern = Concern::kStopped;
  const HangReport found = diagnose(job.reports());
  EXPECT_EQ(found.culprits, Ranks{1});
  EXPECT_NE(found.sentence.find("rank 1 (n1) does not move; no other rank waits for it yet"),
            std::string::npos)
      << found.sentence;
}

// One that has started an exchange and works on: long messages of it rest until it is in MPI again.
TEST(HangReport, NamesTheRankThatLeftAnExchangeUnderWay) {
  ImaginedJob job;
  for (int r = 0; r < 4; ++r) job.block(r, kWorld);
  job.rank(1).state.waits_in = -1;
  const HangReport found = diagnose(job.reports());
  EXPECT_EQ(found.kind, HangKind::kLocal);
  EXPECT_EQ(found.culprits, Ranks{1});
}

TEST(HangReport, NamesTheNetworkWhenAllHaveCome) {
  ImaginedJob job;
  for (int r = 0; r < 4; ++r) job.block(r, kWorld);
  const HangReport found = diagnose(job.reports());
  EXPECT_EQ(found.kind, HangKind::kNetwork);
  EXPECT_EQ(found.culprits, (Ranks{0, 1, 2, 3}));
  EXPECT_EQ(found.hosts, (std::vector<std::string>{"n1", "n2"}));
}

// 0 waits for 1 in the world, 1 for 0 in their tensor group; likewise 2 and 3.
TEST(HangReport, NamesACircle) {
  ImaginedJob job;
  for (const int r : {0, 2, 3}) job.block(r, kWorld);
  job.block(1, kTensor);
  const HangReport found = diagnose(job.reports());
  EXPECT_EQ(found.kind, HangKind::kDeadlock);
}

TEST(HangReport, NamesLostHosts) {
  ImaginedJob job;
  for (const int r : {0, 1}) job.block(r, kWorld);
  for (const int r : {2, 3}) {
    job.rank(r).lost = true;
    job.rank(r).silence = 15.5;
  }
  const HangReport found = diagnose(job.reports());
  EXPECT_EQ(found.kind, HangKind::kLost);
  EXPECT_EQ(found.culprits, (Ranks{2, 3}));
  EXPECT_EQ(found.sentence,
            "step 7 phase forward layer 1: no word from n2 (ranks 2 and 3) for 15.5 s: the host is "
            "down, or cut off from rank 0");
}

TEST(HangReport, NamesAProcessThatIsGone) {
  ImaginedJob job;
  job.block(1, kTensor);
  job.rank(1).concern = Concern::kGone;
  const HangReport found = diagnose(job.reports());
  EXPECT_EQ(found.kind, HangKind::kGone);
  EXPECT_EQ(found.culprits, Ranks{1});
  EXPECT_EQ(found.evidence, "its last exchange: all_reduce f32[64] at model/moe.cc:10");
  for (int r = 0; r < 4; ++r) job.rank(r).concern = Concern::kGone;
  // The whole job is being ended: nobody is to blame.
  EXPECT_EQ(diagnose(job.reports()).kind, HangKind::kNothing);
}

TEST(HangReport, ShowsBothCallsOfAMismatch) {
  ImaginedJob job;
  for (int r = 0; r < 4; ++r) job.exchange(r, kTensor);
  for (const int r : {0, 1, 2}) job.block(r, kTensor, {.line = 20});
  job.block(3, kTensor, {.operation = Collective::kAllGather, .line = 30});
  const HangReport found = diagnose(job.reports());
  EXPECT_EQ(found.kind, HangKind::kMismatch);
  // Rank 2 did what the other group did.
  EXPECT_EQ(found.culprits, Ranks{3});
  EXPECT_EQ(found.sentence,
            "step 7 phase forward layer 1: the ranks of tensor of rank 2 call different exchanges "
            "as #1: rank 3 (n2) all_gather f32[64] at model/moe.cc:30 (step 7 forward layer 1); "
            "rank 2 (n2) all_reduce f32[64] at model/moe.cc:20 (step 7 forward layer 1)");
  EXPECT_EQ(found.evidence,
            "rank 3 left out an exchange, or made another, as 3 ranks made the other call; "
            "exchanges before #1 agree as far as they are kept");
}

// The next exchange is of the same kind and size: only the place in the source tells.
TEST(HangReport, FindsAnExchangeThatWasLeftOutBetweenEqualOnes) {
  ImaginedJob job;
  for (const int r : {0, 1, 2, 3}) {
    if (r != 2) job.exchange(r, kWorld, {.line = 20});
    job.exchange(r, kWorld, {.line = 21});
  }
  for (const int r : {0, 1, 3}) job.block(r, kWorld, {.line = 22});
  const HangReport found = diagnose(job.reports());
  EXPECT_EQ(found.kind, HangKind::kMismatch);
  EXPECT_EQ(found.culprits, Ranks{2});
}

TEST(HangReport, SaysWhenItCannotTellWhoIsWrong) {
  ImaginedJob job;
  job.block(0, kTensor, {.line = 20});
  job.block(1, kTensor, {.line = 30});
  const HangReport found = diagnose(job.reports());
  EXPECT_EQ(found.kind, HangKind::kMismatch);
  EXPECT_EQ(found.culprits, (Ranks{0, 1}));
  EXPECT_TRUE(found.evidence.starts_with("one of them left out")) << found.evidence;
}

TEST(HangReport, TakesWhatRanksNeverSend) {
  ImaginedJob job;
  for (int r = 0; r < 4; ++r) job.block(r, kWorld);
  job.rank(0).state.waits_in = 99;
  job.rank(1).records[0].group = 77;
  job.rank(2).groups.clear();
  job.rank(3).records.clear();
  EXPECT_NE(diagnose(job.reports()).sentence, "");
}

TEST(HangKind, HasNames) {
  EXPECT_STREQ(name_of(HangKind::kLocal), "LOCAL HANG");
  EXPECT_STREQ(name_of(HangKind::kDeadlock), "DEADLOCK");
}

}  // namespace
}  // namespace tessera
