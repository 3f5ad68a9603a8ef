#include "launcher/arguments.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"

namespace tessera {
namespace {

namespace options = boost::program_options;
using Arguments = std::vector<std::string>;

CommandLine walk() {
  CommandLine line;
  line.name = "walk";
  line.usage = "DOG [options]";
  line.about = "Walks a dog.";
  line.examples = "once round the house\n  tessera walk rex --minutes 3";
  line.options.add_options()                                                                    //
      ("minutes", options::value<int>()->default_value(30)->value_name("N"), "how long")        //
      ("set", options::value<Arguments>()->composing()->value_name("A=B"), "change something")  //
      ("fast", options::bool_switch(), "run");
  line.positional = {"DOG"};
  return line;
}

std::string refusal(const Arguments& arguments) {
  try {
    parse_arguments(walk(), arguments);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return "no error";
}

TEST(Arguments, AreParsed) {
  const auto values =
      parse_arguments(walk(), {"--set", "a=1", "rex", "--fast", "--set=b=--2", "--minutes=-5"});
  ASSERT_TRUE(values);
  EXPECT_EQ((*values)["DOG"].as<std::string>(), "rex");
  EXPECT_EQ((*values)["minutes"].as<int>(), -5);
  EXPECT_TRUE((*values)["fast"].as<bool>());
  EXPECT_EQ((*values)["set"].as<Arguments>(), (Arguments{"a=1", "b=--2"}));
}

TEST(Arguments, HelpIsPrintedAndNothingElseDone) {
  testing::internal::CaptureStdout();
  EXPECT_FALSE(parse_arguments(walk(), {"--nonsense", "--help"}));
  const std::string help = testing::internal::GetCapturedStdout();
  EXPECT_TRUE(help.starts_with("usage: tessera walk DOG [options]\n\nWalks a dog.\n")) << help;
  EXPECT_NE(help.find("--minutes N (=30)"), std::string::npos) << help;
  EXPECT_TRUE(help.ends_with("example: once round the house\n  tessera walk rex --minutes 3\n"));
  EXPECT_EQ(help.find("too many"), std::string::npos) << help;
}

TEST(Arguments, MistakesAreNamedWithAWayOut) {
  EXPECT_EQ(refusal({"rex", "--minuts", "3"}),
            "tessera walk: there is no option --minuts; did you mean \"--minutes\"?; see tessera "
            "walk --help");
  EXPECT_EQ(refusal({"rex", "--min", "3"}),
            "tessera walk: there is no option --min; expected one of --minutes, --set, --fast, "
            "--help; see tessera walk --help");
  EXPECT_EQ(refusal({"rex", "-x"}),
            "tessera walk: there is no option -x; expected one of --minutes, --set, --fast, "
            "--help; see tessera walk --help");
  EXPECT_EQ(refusal({"rex", "--minutes"}),
            "tessera walk: --minutes needs a value; see tessera walk --help");
  EXPECT_EQ(refusal({"rex", "--minutes", "3", "--minutes", "4"}),
            "tessera walk: --minutes is given more than once; see tessera walk --help");
  EXPECT_EQ(refusal({"rex", "--minutes", "soon"}),
            "tessera walk: the argument ('soon') for option '--minutes' is invalid; see tessera "
            "walk --help");
  EXPECT_EQ(refusal({"rex", "bello"}),
            "tessera walk: \"bello\" is one argument too many; see tessera walk --help");
  EXPECT_EQ(refusal({}), "tessera walk: DOG is missing; see tessera walk --help");
}

TEST(Arguments, SurviveHostileOnes) {
  EXPECT_LT(refusal({"rex", "--" + std::string(1000000, 'x')}).size(), 300u);
  EXPECT_LT(refusal({"rex", std::string(1000000, 'x')}).size(), 300u);
  EXPECT_LT(refusal({"rex", "--minutes", std::string(1000000, '9')}).size(), 300u);
  EXPECT_LT(refusal({"rex", "--=", "--", "-", ""}).size(), 300u);
}

}  // namespace
}  // namespace tessera
