#include "runtime/data/progress.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string_view>

namespace tessera {
namespace {

TEST(Progress, TextShowsShareRateAndTimeLeft) {
  EXPECT_EQ(progress_text("encoding", 12'500'000, 50'000'000, 2),
            "encoding [======>                 ]  25%  12.5 of 50.0 MB  6.2 MB/s  0:06 left");
  EXPECT_EQ(progress_text("encoding", 0, 50'000'000, 0),
            "encoding [>                       ]   0%  0.0 of 50.0 MB  0.0 MB/s  --:-- left");
  EXPECT_EQ(progress_text("encoding", 50'000'000, 50'000'000, 4000),
            "encoding [========================] 100%  50.0 of 50.0 MB  0.0 MB/s  1:06:40 in all");
}

TEST(Progress, TextSurvivesOddNumbers) {
  EXPECT_EQ(progress_text("x", 0, 0, 0),
            "x [========================] 100%  0.0 of 0.0 MB  0.0 MB/s  0:00 in all");
  EXPECT_EQ(progress_text("x", 7'000'000, 5'000'000, 1),
            "x [========================] 100%  7.0 of 5.0 MB  7.0 MB/s  0:01 in all");
}

TEST(Progress, PlainOutputIsOneLineForAShortTask) {
  std::FILE* const out = std::tmpfile();
  Progress progress("encoding", out, /*terminal=*/false);
  for (int i = 0; i < 1000; ++i) progress.update(i, 1000);
  progress.finish(1000);
  std::rewind(out);
  std::array<char, 4096> text{};
  const size_t size = std::fread(text.data(), 1, text.size(), out);
  std::fclose(out);
  const std::string_view written(text.data(), size);
  EXPECT_EQ(std::count(written.begin(), written.end(), '\n'), 1);
  EXPECT_EQ(written.find('\r'), std::string_view::npos);
}

}  // namespace
}  // namespace tessera
