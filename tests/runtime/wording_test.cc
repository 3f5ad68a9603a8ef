#include "runtime/config/wording.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

TEST(Wording, QuotesWhatAnyTerminalCanShow) {
  EXPECT_EQ(in_quotes("layers"), "\"layers\"");
  EXPECT_EQ(in_quotes(std::string("a\0\x1b\xff\n", 5)), "\"a\\x00\\x1b\\xff\\x0a\"");
  EXPECT_EQ(in_quotes(std::string(60, 'x')), "\"" + std::string(60, 'x') + "\"");
  EXPECT_EQ(in_quotes(std::string(61, 'x')), "\"" + std::string(60, 'x') + "...\"");
}

TEST(Wording, SuggestsTheNearestName) {
  const std::vector<std::string> names{"layers", "heads", "kv_heads", "hidden"};
  EXPECT_EQ(did_you_mean("layerz", names), "; did you mean \"layers\"?");
  EXPECT_EQ(did_you_mean("kvheads", names), "; did you mean \"kv_heads\"?");
  EXPECT_EQ(did_you_mean("heasd", names), "; did you mean \"heads\"?");
  EXPECT_EQ(did_you_mean("head", names), "; did you mean \"heads\"?");
  EXPECT_EQ(did_you_mean("depth", names), "; expected one of layers, heads, kv_heads, hidden");
  EXPECT_EQ(did_you_mean(std::string(1000000, 'l'), names),
            "; expected one of layers, heads, kv_heads, hidden");
}

TEST(Wording, PrefersTheFirstOfEquallyNearNames) {
  EXPECT_EQ(did_you_mean("beta3", {"beta1", "beta2"}), "; did you mean \"beta1\"?");
}

TEST(Wording, JoinsProblemsAndCountsTheRest) {
  EXPECT_EQ(joined({"one", "two"}), "one\ntwo");
  const std::string all = joined(std::vector<std::string>(23, "p"));
  EXPECT_TRUE(all.ends_with("p\nand 3 more problems; mend these first")) << all;
}

}  // namespace
}  // namespace tessera
