#include "kernels/core/error.h"

#include <gtest/gtest.h>

#include <functional>
#include <regex>
#include <string>
#include <thread>

namespace tessera {
namespace {

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing was thrown";
}

TEST(Error, SaysWhatAndWhereFromTheRoot) {
  const std::string message = message_of([] { CHECK(1 > 2, "x is ", 3, ", expected ", 4.5); });
  EXPECT_TRUE(std::regex_match(
      message, std::regex("x is 3, expected 4\\.5 \\([a-z/]*core/error_test\\.cc:[0-9]+\\)")))
      << message;
  EXPECT_EQ(message_of([] { CHECK(2 > 1, "fine"); }), "nothing was thrown");
}

TEST(Error, AUsersErrorHasACodeAndNoPlace) {
  const Error error(ExitCode::kNoCheckpoint, "no checkpoint in runs/a");
  EXPECT_STREQ(error.what(), "no checkpoint in runs/a");
  EXPECT_EQ(static_cast<int>(error.code()), 66);
  EXPECT_EQ(Error("parallel/x.cc", 1, "m").code(), ExitCode::kError);
}

TEST(Error, NamesTheRankInAWorldOfSeveral) {
  // Each thread is a rank of its own, so the other tests are not disturbed.
  std::thread([] {
    EXPECT_EQ(rank_prefix(), "");
    set_error_rank(3, 16);
    EXPECT_EQ(rank_prefix(), "[rank 3/16] ");
    EXPECT_STREQ(Error(ExitCode::kUsage, "no").what(), "[rank 3/16] no");
    EXPECT_EQ(message_of([] { CHECK(false, "no"); }).rfind("[rank 3/16] no (", 0), 0u);
    set_error_rank(0, 1);
    EXPECT_EQ(rank_prefix(), "");
  }).join();
}

TEST(Error, ExitCodesAreAContract) {
  EXPECT_EQ(static_cast<int>(ExitCode::kFinished), 0);
  EXPECT_EQ(static_cast<int>(ExitCode::kUsage), 2);
  EXPECT_EQ(static_cast<int>(ExitCode::kBadData), 65);
  EXPECT_EQ(static_cast<int>(ExitCode::kNoCheckpoint), 66);
  EXPECT_EQ(static_cast<int>(ExitCode::kTryAgain), 75);
  EXPECT_EQ(static_cast<int>(ExitCode::kNoProgress), 93);
}

}  // namespace
}  // namespace tessera
