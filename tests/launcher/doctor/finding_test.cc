#include "launcher/doctor/finding.h"

#include <gtest/gtest.h>

#include <cmath>

#include "launcher/doctor/words.h"

namespace tessera {
namespace {

TEST(Finding, LinesHaveColumnsAndASum) {
  const Findings findings{{Verdict::kOk, "mpi", "all is well"},
                          {Verdict::kWarn, "limits", "too few files", "ulimit -n 4096"},
                          {Verdict::kFail, "pairs", "nothing gets through", "look", "a and b"}};
  EXPECT_EQ(lines_of(findings),
            "ok    mpi     all is well\n"
            "warn  limits  too few files -> ulimit -n 4096\n"
            "fail  pairs   [a and b] nothing gets through -> look\n"
            "1 ok, 1 warning, 1 failure\n");
  EXPECT_EQ(worst_of(findings), Verdict::kFail);
  EXPECT_EQ(worst_of({findings[0], findings[1]}), Verdict::kWarn);
  EXPECT_EQ(worst_of({}), Verdict::kOk);
}

TEST(Words, AreFoundInTextsOfAnyForm) {
  EXPECT_EQ(trimmed(" \t a b\r\n"), "a b");
  EXPECT_EQ(trimmed(" \n"), "");
  EXPECT_EQ(words_of("a,,b c", ", "), (std::vector<std::string>{"a", "b", "c"}));
  EXPECT_EQ(lines_in("\n a \r\n\n b"), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(last_line_of("a\nb\n \n"), "b");
  EXPECT_EQ(last_line_of(""), "");
  EXPECT_EQ(value_of("x = 1\n  key  :  some words \n", "key"), "some words");
  EXPECT_EQ(value_of("key=\n", "key"), "");
  EXPECT_EQ(value_of("", "key"), std::nullopt);
}

TEST(Words, NumbersAndVersions) {
  EXPECT_EQ(number_in(" 12.5 kB"), 12.5);
  EXPECT_EQ(number_in("kB 1"), std::nullopt);
  EXPECT_EQ(number_in("inf"), std::nullopt);
  EXPECT_EQ(number_in("nan"), std::nullopt);
  EXPECT_EQ(version_in("Open MPI 4 v4.1.4, May"), "4.1.4");
  EXPECT_EQ(version_in("none 5"), "");
  EXPECT_EQ(compare_versions("4.1.10", "4.1.9"), 1);
  EXPECT_EQ(compare_versions("4.1", "4.1.0"), 0);
  EXPECT_EQ(compare_versions("2.28.9", "2.28.10"), -1);
  EXPECT_EQ(count_of_ranges("0-3,8\n"), 5);
  EXPECT_EQ(count_of_ranges("7"), 1);
  for (const char* wrong : {"", "x", "3-1", "0-9999999999"}) {
    EXPECT_EQ(count_of_ranges(wrong), 0) << wrong;
  }
}

TEST(Words, FiguresForPeople) {
  EXPECT_EQ(bytes_text(512), "512 B");
  EXPECT_EQ(bytes_text(999.9e6), "1 GB");
  EXPECT_EQ(bytes_text(24.72e9), "24.7 GB");
  EXPECT_EQ(seconds_text(3.21e-7), "0.321 us");
  EXPECT_EQ(seconds_text(1.25e-3), "1.25 ms");
  EXPECT_EQ(seconds_text(90), "90 s");
  EXPECT_EQ(seconds_text(86400), "86400 s");
  EXPECT_EQ(listed({"a", "b", "c"}), "a, b and c");
  EXPECT_EQ(listed({"a"}), "a");
}

}  // namespace
}  // namespace tessera
