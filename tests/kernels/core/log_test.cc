#include "kernels/core/log.h"

#include <gtest/gtest.h>

#include <regex>
#include <string>
#include <thread>

namespace tessera {
namespace {

/// What `f` writes to standard error as rank `rank` of `world`.
template <class F>
std::string lines_of(int rank, int world, F f) {
  testing::internal::CaptureStderr();
  std::thread([&] {
    set_error_rank(rank, world);
    f();
  }).join();
  return testing::internal::GetCapturedStderr();
}

TEST(Log, OneLineWithTimeAndRank) {
  const std::string clock = "[0-9]{2}:[0-9]{2}:[0-9]{2} ";
  const auto say = [] { log_line("step 5"); };
  EXPECT_TRUE(std::regex_match(lines_of(0, 1, say), std::regex(clock + "step 5\n")));
  EXPECT_TRUE(
      std::regex_match(lines_of(3, 16, say), std::regex(clock + "\\[rank 3/16\\] step 5\n")));
}

TEST(Log, FactsOfAllRanksComeFromTheFirst) {
  const auto say = [] { log_once("loaded"); };
  EXPECT_NE(lines_of(0, 1, say), "");
  EXPECT_NE(lines_of(0, 16, say), "");
  EXPECT_EQ(lines_of(1, 16, say), "");
  EXPECT_EQ(lines_of(10, 16, say), "");
}

}  // namespace
}  // namespace tessera
