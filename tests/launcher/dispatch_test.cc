#include "launcher/dispatch.h"

#include <gtest/gtest.h>

#include "kernels/core/cpu_features.h"
#include "kernels/core/error.h"
#include "launcher/version.h"

namespace tessera {
namespace {

std::string output_of(const std::vector<std::string>& arguments) {
  testing::internal::CaptureStdout();
  EXPECT_EQ(dispatch(arguments), 0);
  return testing::internal::GetCapturedStdout();
}

std::string refusal(const std::vector<std::string>& arguments) {
  try {
    dispatch(arguments);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return "no error";
}

TEST(Dispatch, PrintsHelpWithAnExample) {
  const std::string help = output_of({"--help"});
  EXPECT_TRUE(help.starts_with("usage: tessera COMMAND ...\n")) << help;
  EXPECT_NE(help.find("\n  data        make token shards from text\n"), std::string::npos) << help;
  EXPECT_NE(help.find("example: tessera "), std::string::npos) << help;
  EXPECT_EQ(output_of({"-h"}), help);
  EXPECT_EQ(output_of({"help"}), help);
}

TEST(Dispatch, EveryCommandHasHelpWithAnExample) {
  std::istringstream lines(output_of({"--help"}));
  int commands = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("  ")) continue;
    const std::string name = line.substr(2, line.find(' ', 2) - 2);
    const std::string help = output_of({name, "--help"});
    EXPECT_TRUE(help.starts_with("usage: tessera " + name)) << help;
    EXPECT_NE(help.find("\n  tessera " + name), std::string::npos) << help;
    ++commands;
  }
  EXPECT_GE(commands, 1);
}

TEST(Dispatch, PrintsTheVersion) {
  const std::string version = output_of({"--version"});
  EXPECT_EQ(version, version_text() + "\n");
  EXPECT_TRUE(version.starts_with("tessera " TESSERA_VERSION " (")) << version;
  EXPECT_NE(version.find("-march="), std::string::npos);
  EXPECT_NE(version.find("CUDA)"), std::string::npos);
}

TEST(Dispatch, NamesTheNearestCommand) {
  EXPECT_EQ(refusal({"dta"}),
            "tessera: there is no command \"dta\"; did you mean \"data\"?; see tessera --help");
  EXPECT_EQ(refusal({}), "tessera: the command is missing; see tessera --help");
}

// What this program is made of runs here; the other case needs another processor.
TEST(CpuFeatures, OfTheBuildingMachineAreAllThere) {
  EXPECT_EQ(missing_cpu_feature(), nullptr);
}

}  // namespace
}  // namespace tessera
