#include "checkpoint/sharded_safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "tests/checkpoint/sample_run.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using support::random_tensor;
using support::Tensor;

const std::string kFirst = "model-00001-of-00002.safetensors";
const std::string kSecond = "model-00002-of-00002.safetensors";

/// A directory with tensors a and b in one file and c in another.
class ShardedSafetensorsTest : public testing::Test {
 protected:
  ShardedSafetensorsTest() {
    const std::vector<SafetensorsTensor> first{{"a", a_.view()}, {"b", b_.view()}};
    const std::vector<SafetensorsTensor> second{{"c", c_.view()}};
    write_safetensors(path() / kFirst, first);
    write_safetensors(path() / kSecond, second);
    write_index({{"a", kFirst}, {"b", kFirst}, {"c", kSecond}});
  }
  const fs::path& path() const { return directory_.path(); }
  void write_index(const WeightMap& files) const {
    std::ofstream(path() / kWeightIndexName) << weight_index_text(files, 1);
  }
  std::string refusal() const {
    try {
      const ShardedSafetensors model(path());
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadData) << error.what();
      return error.what();
    }
    return "";
  }
  void expect_refusal(const std::string& sentence) const {
    EXPECT_NE(refusal().find(sentence), std::string::npos) << refusal();
  }

  support::TemporaryDirectory directory_;
  Tensor a_ = random_tensor(DType::kF32, {3}, 1);
  Tensor b_ = random_tensor(DType::kBF16, {2, 2}, 2);
  Tensor c_ = random_tensor(DType::kF32, {5}, 3);
};

TEST_F(ShardedSafetensorsTest, ReadsEveryTensorFromItsFile) {
  const ShardedSafetensors model(path());
  EXPECT_EQ(model.files(), 2u);
  ASSERT_EQ(model.tensors().size(), 3u);
  EXPECT_EQ(model.tensors()[1].entry.name, "b");
  for (const auto& [name, tensor] : {std::pair{"a", &a_}, {"b", &b_}, {"c", &c_}}) {
    const PlacedTensor& placed = model.find(name);
    const Tensor back(tensor->dtype(), tensor->shape());
    model.read_bytes(
        placed, 0,
        {static_cast<std::byte*>(back.view().data()), static_cast<size_t>(back.view().bytes())});
    support::expect_same_bits(back, *tensor, name);
  }
  std::array<std::byte, 4> last{};
  model.read_bytes(model.find("c"), 16, last);
  EXPECT_EQ(std::memcmp(last.data(), &c_.as<float>()[4], 4), 0);
  EXPECT_THROW((void)model.find("bb"), Error);
}

TEST_F(ShardedSafetensorsTest, OneFileNeedsNoIndex) {
  const std::vector<SafetensorsTensor> all{{"x", a_.view()}};
  write_safetensors(path() / kOneFileName, all);
  const ShardedSafetensors model(path());
  EXPECT_EQ(model.files(), 1u);
  EXPECT_EQ(model.find("x").file, 0u);
}

TEST_F(ShardedSafetensorsTest, FilesMayBeLinks) {
  const support::TemporaryDirectory cache;
  fs::rename(path() / kSecond, cache.path() / "blob");
  fs::create_symlink(cache.path() / "blob", path() / kSecond);
  EXPECT_EQ(ShardedSafetensors(path()).tensors().size(), 3u);
}

TEST_F(ShardedSafetensorsTest, SaysWhatIsMissing) {
  fs::remove(path() / kSecond);
  expect_refusal("lacks 1 of 2 files that its index names: " + kSecond);
  fs::remove(path() / kWeightIndexName);
  expect_refusal("has neither model.safetensors nor model.safetensors.index.json");
  support::expect_error([&] { ShardedSafetensors model(path() / "none"); }, "does not exist");
}

TEST_F(ShardedSafetensorsTest, IndexAndFilesMustAgree) {
  write_index({{"a", kFirst}, {"b", kFirst}, {"c", kFirst}});
  expect_refusal("names tensors that are not in their files, 1: c (" + kFirst + ")");
  write_index({{"a", kFirst}, {"b", kSecond}, {"c", kSecond}});
  expect_refusal(kFirst + " has tensor b, expected it in " + kSecond);
  write_index({{"a", kFirst}, {"c", kSecond}});
  expect_refusal(kFirst + " has tensor b, which ");
  write_index({{"a", kFirst}, {"b", kFirst}, {"c", kSecond}, {"d", kSecond}, {"e", kFirst}});
  expect_refusal("names tensors that are not in their files, 2: d (" + kSecond + "), e (");
}

TEST_F(ShardedSafetensorsTest, ATensorInTwoFilesIsRefused) {
  const std::vector<SafetensorsTensor> second{{"c", c_.view()}, {"a", a_.view()}};
  write_safetensors(path() / kSecond, second);
  expect_refusal(kSecond + " has tensor a, expected it in " + kFirst);
}

TEST_F(ShardedSafetensorsTest, APipeOrAnEndlessFileIsRefused) {
  fs::remove(path() / kSecond);
  fs::create_symlink("/dev/zero", path() / kSecond);
  expect_refusal("is not a regular file");
  fs::remove(path() / kWeightIndexName);
  fs::create_symlink("/dev/zero", path() / kWeightIndexName);
  expect_refusal("is not a regular file");
}

TEST_F(ShardedSafetensorsTest, AHugeIndexIsNotRead) {
  fs::resize_file(path() / kWeightIndexName, kMaxWeightIndex + 1);
  expect_refusal("has 100000001 bytes, expected at most 100000000");
}

}  // namespace
}  // namespace tessera
