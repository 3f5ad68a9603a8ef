#include "runtime/watch/watch_message.h"

#include <gtest/gtest.h>

#include <random>

#include "kernels/core/error.h"
#include "tests/watch/imagined_job.h"

namespace tessera {
namespace {

TEST(Frames, ComeWholeHoweverTheyAreCut) {
  const std::string bytes = frame(WatchMessage::kReport, "body") + frame(WatchMessage::kBye, "");
  for (size_t cut = 1; cut < bytes.size(); ++cut) {
    FrameReader reader;
    std::vector<Frame> frames;
    for (size_t at = 0; at < bytes.size(); at += cut) {
      reader.add(bytes.substr(at, cut));
      while (auto next = reader.next()) frames.push_back(*next);
    }
    ASSERT_EQ(frames.size(), 2u);
    EXPECT_EQ(frames[0].kind, WatchMessage::kReport);
    EXPECT_EQ(frames[0].body, "body");
    EXPECT_EQ(frames[1].body, "");
  }
}

TEST(Frames, RefuseStrangers) {
  FrameReader reader;
  reader.add("GET / HTTP/1.1\r\n");
  EXPECT_THROW(reader.next(), Error);
  EXPECT_FALSE(body_of<HelloBody>({WatchMessage::kHello, "short"}).has_value());
}

TEST(RankReportBytes, ComeBack) {
  ImaginedJob job;
  job.exchange(2, ImaginedJob::kTensor);
  job.block(2, ImaginedJob::kWorld);
  const RankReport report = report_from(bytes_of(job.rank(2)));
  EXPECT_EQ(report.rank, 2);
  EXPECT_EQ(report.host(), "n2");
  EXPECT_EQ(report.groups.size(), 2u);
  ASSERT_EQ(report.records.size(), 2u);
  EXPECT_EQ(report.records[1].index, report.state.waits_in);
}

// Whatever comes is refused, or is a report that is safe to read.
TEST(RankReportBytes, SurviveDamage) {
  ImaginedJob job;
  job.block(2, ImaginedJob::kWorld);
  const std::string whole = bytes_of(job.rank(2));
  std::mt19937 random(1);
  for (size_t bytes = 0; bytes < whole.size(); bytes += 7) {
    EXPECT_THROW(report_from(whole.substr(0, bytes)), Error);
  }
  for (int i = 0; i < 2000; ++i) {
    std::string damaged = whole;
    for (int flips = 0; flips < 4; ++flips) damaged[random() % damaged.size()] ^= 1 << random() % 8;
    try {
      EXPECT_LT(report_from(damaged).host().size(), 64u);
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace tessera
