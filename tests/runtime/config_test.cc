#include "runtime/config/config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "kernels/core/error.h"
#include "runtime/config/text_writer.h"
#include "runtime/config/train.pb.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// The message of the Error(kUsage) that `body` throws.
template <class Body>
std::string usage_error(Body body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return "no error";
}

std::string parse_error(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return usage_error([&] { parse_train_config(text, "t", overrides); });
}

const std::string kTiny = read_file(SOURCE_ROOT "/configs/tiny.textproto");

class ShippedConfig : public testing::TestWithParam<std::string> {};

TEST_P(ShippedConfig, LoadsAndResolvesToItself) {
  const fs::path file = fs::path(SOURCE_ROOT) / "configs" / GetParam();
  const TrainConfig config = load_train_config(file);
  const std::string text = to_text(config);
  EXPECT_EQ(to_text(parse_train_config(text, "resolved")), text);
  for (const char* choice : {"precision: ", "shape: ", "device: ", "data: "}) {
    EXPECT_NE(text.find(choice), std::string::npos) << choice << " is not written";
  }
}

INSTANTIATE_TEST_SUITE_P(Configs, ShippedConfig,
                         testing::Values("quickstart.textproto", "tiny.textproto",
                                         "gpt2-124m-shape.textproto", "moe-100b-384gpu.textproto"),
                         [](const auto& tested) {
                           std::string name = tested.param.substr(0, tested.param.find('.'));
                           std::erase(name, '-');
                           return name;
                         });

TEST(Config, EveryFileInConfigsIsTested) {
  int files = 0;
  for (const auto& entry : fs::directory_iterator(SOURCE_ROOT "/configs")) {
    EXPECT_EQ(entry.path().extension(), ".textproto");
    ++files;
  }
  EXPECT_EQ(files, 4);
}

/// Weights of matrices and embeddings, by the shapes alone.
struct Parameters {
  double total;
  double active;
};
Parameters count_parameters(const ModelConfig& m) {
  const double dense_layers = m.has_moe() ? m.moe().dense_layers() : m.layers();
  const double moe_layers = m.layers() - dense_layers;
  const double attention = 2.0 * m.hidden() * m.head_dim() * (m.heads() + m.kv_heads());
  const double expert = 3.0 * m.hidden() * m.moe().intermediate();
  const double always = m.layers() * attention +
                        dense_layers * 3.0 * m.hidden() * m.intermediate() +
                        moe_layers * m.moe().shared_experts() * expert +
                        (m.tie_embeddings() ? 1.0 : 2.0) * m.vocabulary() * m.hidden();
  return {always + moe_layers * m.moe().experts() * expert,
          always + moe_layers * m.moe().experts_per_token() * expert};
}

TEST(Config, ShapesHaveTheSizesTheyClaim) {
  const auto size = [](const char* name) {
    return count_parameters(load_train_config(fs::path(SOURCE_ROOT) / "configs" / name).model());
  };
  EXPECT_NEAR(size("gpt2-124m-shape.textproto").total, 123.5e6, 0.1e6);
  EXPECT_NEAR(size("moe-100b-384gpu.textproto").total, 101e9, 0.5e9);
  EXPECT_NEAR(size("moe-100b-384gpu.textproto").active, 12.2e9, 0.3e9);
}

TEST(Config, ShippedMeshesFitTheirJobs) {
  TrainConfig large = load_train_config(SOURCE_ROOT "/configs/moe-100b-384gpu.textproto");
  resolve_mesh(large, 384);
  EXPECT_EQ(large.mesh().tensor(), 8);
  const std::vector<std::string> mesh{"mesh.expert=2", "mesh.sequence=2", "mesh.tensor=2"};
  TrainConfig small = load_train_config(SOURCE_ROOT "/configs/quickstart.textproto", mesh);
  resolve_mesh(small, 8);
  EXPECT_EQ(small.mesh().data(), 1);
  EXPECT_EQ(small.batch().micro_sequences(), 8);
  for (const int ranks : {1, 2, 4, 8, 16}) {
    TrainConfig any = load_train_config(SOURCE_ROOT "/configs/quickstart.textproto");
    resolve_mesh(any, ranks);
    EXPECT_EQ(any.mesh().data(), ranks);
    const std::string text = to_text(any);
    EXPECT_EQ(to_text(parse_train_config(text, "resolved")), text);
  }
}

TEST(Config, ProblemsSayWhereTheFieldWasWritten) {
  std::string text = kTiny;
  text.replace(text.find("kv_heads: 2"), 11, "kv_heads: 3");
  const std::vector<std::string> overrides{"model.moe.experts_per_token=9",
                                           "sparsity.dense_steps="};
  EXPECT_EQ(parse_error(text, overrides),
            "t:10:3: model.heads is 4, expected a multiple of model.kv_heads = 3\n"
            "--set model.moe.experts_per_token=9: model.moe.experts_per_token is 9, expected at "
            "most model.moe.experts = 4");
  EXPECT_EQ(parse_error(kTiny, std::vector<std::string>{"steps="}),
            "t: steps is missing or 0, expected 1 to 1000000000000");
}

TEST(Config, TellsProblemsOfTheFileAndOfOverridesTogether) {
  EXPECT_EQ(parse_error("stepz: 3\n", std::vector<std::string>{"sed=1", "mesh.tensr=2"}),
            "t:1:1: TrainConfig has no field \"stepz\"; did you mean \"steps\"?\n"
            "--set sed=1: TrainConfig has no field \"sed\"; did you mean \"seed\"?\n"
            "--set mesh.tensr=2: mesh has no field \"tensr\"; did you mean \"tensor\"?");
}

TEST(Config, AnEmptyFileLacksEverythingRequired) {
  const std::string message = parse_error("");
  for (const char* field : {"model.vocabulary", "model.hidden", "model.layers", "batch.sequences",
                            "optimizer.learning_rate", "steps", "run_dir", "data.path"}) {
    EXPECT_NE(message.find(std::string("t: ") + field + " is missing"), std::string::npos) << field;
  }
}

TEST(Config, MeshMustFitTheJob) {
  TrainConfig config = parse_train_config(kTiny, "t", std::vector<std::string>{"mesh.tensor=2"});
  EXPECT_EQ(usage_error([&] { resolve_mesh(config, 3); }),
            "mesh: data 1 x expert 1 x sequence 1 x tensor 2 needs 2 ranks, the job has 3; the "
            "nearest mesh that fits is data 1 x expert 1 x sequence 1 x tensor 3, or start 2 "
            "ranks");
  config = parse_train_config(kTiny, "t");
  EXPECT_EQ(usage_error([&] { resolve_mesh(config, 16); }),
            "mesh.data x mesh.expert is 16, expected a divisor of batch.sequences = 8; nearest: 8");
}

TEST(Config, FilesThatCannotBeRead) {
  const fs::path folder = fs::temp_directory_path() / "tessera_config_test";
  fs::create_directories(folder);
  std::ofstream(folder / "quickstart.textproto") << kTiny;
  EXPECT_EQ(usage_error([&] { load_train_config(folder / "quikstart.textproto"); }),
            "configuration " + (folder / "quikstart.textproto").string() +
                " does not exist; did you mean \"quickstart.textproto\"?");
  EXPECT_EQ(usage_error([&] { load_train_config(folder / "none" / "a.textproto"); }),
            "configuration " + (folder / "none/a.textproto").string() + " does not exist");
  EXPECT_EQ(usage_error([&] { load_train_config(folder); }),
            "configuration " + folder.string() + " is not a regular file");
  EXPECT_EQ(usage_error([&] { load_train_config("/dev/zero"); }),
            "configuration /dev/zero is not a regular file");
  fs::remove_all(folder);
}

TEST(Config, HostileTextsAreRefused) {
  EXPECT_EQ(parse_error(std::string(10 << 20, 'x')),
            "t has more than 1048576 bytes, too many for a configuration");
  EXPECT_EQ(parse_error(std::string("steps: 3\0", 9)),
            "t holds the byte \"\\x00\" at offset 8, expected a text file");
  std::mt19937 random(7);
  std::string garbage(1 << 16, '\0');
  for (char& byte : garbage) byte = static_cast<char>(random());
  EXPECT_NE(parse_error(garbage).find("expected a text file"), std::string::npos);
  for (char& byte : garbage) byte = static_cast<char>(0x20 + random() % 95);
  EXPECT_NE(parse_error(garbage), "no error");
  EXPECT_NE(parse_error("model {" + std::string(1000000, '{')), "no error");
  EXPECT_NE(parse_error("steps: " + std::string(1000000, '9')), "no error");
  EXPECT_NE(parse_error("run_dir: '" + std::string(1000000, 'a')), "no error");
}

}  // namespace
}  // namespace tessera
