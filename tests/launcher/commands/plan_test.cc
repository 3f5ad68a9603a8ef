#include <gtest/gtest.h>

#include "kernels/core/error.h"
#include "launcher/commands/commands.h"
#include "runtime/config/config.h"
#include "runtime/config/train.pb.h"

namespace tessera {
namespace {

std::string output_of(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), SOURCE_ROOT "/configs/tiny.textproto");
  testing::internal::CaptureStdout();
  std::string thrown;
  try {
    EXPECT_EQ(run_plan(arguments), 0);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    thrown = error.what();
  }
  return testing::internal::GetCapturedStdout() + thrown;
}

TEST(PlanCommand, PrintsTheBestMeshesWithTheLineToUse) {
  const std::string text = output_of({"--ranks", "4", "--hardware", "cpu", "--top", "3"});
  EXPECT_NE(text.find(" meshes of 4 ranks divide the model and its batch. Memory of cpu: 8 GB"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("\n1. data "), std::string::npos) << text;
  EXPECT_NE(text.find("\n3. data "), std::string::npos) << text;
  EXPECT_EQ(text.find("\n4. data "), std::string::npos) << text;
  EXPECT_NE(text.find(" in a dense step: "), std::string::npos) << text;
  EXPECT_NE(text.find(" in a tuning step: "), std::string::npos) << text;
  EXPECT_EQ(text.find("DOES NOT FIT"), std::string::npos) << text;
  // Every line can be used as it stands.
  size_t lines = 0;
  for (size_t at = 0; (at = text.find("   --set ", at)) != std::string::npos; ++lines) {
    std::istringstream words(text.substr(at, text.find('\n', at) - at));
    std::vector<std::string> overrides;
    for (std::string set, value; words >> set >> value;) overrides.push_back(value);
    ASSERT_EQ(overrides.size(), 4u);
    TrainConfig config = load_train_config(SOURCE_ROOT "/configs/tiny.textproto", overrides);
    resolve_mesh(config, 4);
    at += 1;
  }
  EXPECT_EQ(lines, 3u);
}

TEST(PlanCommand, TakesTheRanksOfTheConfigurationsMesh) {
  const std::string text = output_of({"--set", "mesh.data=2", "--top", "1"});
  EXPECT_NE(text.find(" meshes of 2 ranks "), std::string::npos) << text;
  EXPECT_EQ(output_of({"--gpus", "2", "--top", "1"}), text);
}

TEST(PlanCommand, RefusesWhatItCannotUse) {
  EXPECT_EQ(output_of({"--gpus", "2", "--ranks", "2"}),
            "tessera plan: --ranks and --gpus are the same; give one of them; see tessera plan "
            "--help");
  EXPECT_EQ(output_of({"--top", "0"}),
            "tessera plan: --top is 0, expected at least 1; see tessera plan --help");
}

}  // namespace
}  // namespace tessera
