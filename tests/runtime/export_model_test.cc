#include "runtime/export/export_model.h"

#include <gtest/gtest.h>

#include <fstream>

#include "checkpoint/sharded_safetensors.h"
#include "model/whole_parameters.h"
#include "runtime/generate/loaded_model.h"
#include "tests/runtime/training_fixture.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

class ExportModelTest : public support::TrainingFixture {
 protected:
  /// A run of two steps; its directory.
  fs::path trained(const std::string& name, const std::vector<std::string>& more = {}) {
    std::vector<std::string> overrides{"steps=2", "sparsity="};
    overrides.insert(overrides.end(), more.begin(), more.end());
    const TrainConfig of = config(name, overrides);
    EXPECT_EQ(run(of), TrainingEnd::kFinished);
    return directory_ / name;
  }

  /// Fails unless the files hold every parameter of the run bit for bit.
  void expect_exported(const fs::path& run, const fs::path& files, const std::string& precision) {
    Stream stream(Device{}, 1);
    const LoadedModel loaded = load_model(stream, run, {.precision = precision});
    const ShardedSafetensors exported(files);
    size_t parts = 0;
    const WholeParameters values(stream, *loaded.store, WholeParameters::Of::kValues);
    for (const auto& [name, value] : values.all()) {
      for (const HuggingFacePart& part :
           hugging_face_parts(loaded.config->model(), name, value.shape())) {
        const PlacedTensor& found = exported.find(part.name);
        EXPECT_EQ(found.entry.dtype, value.dtype()) << part.name;
        EXPECT_EQ(found.entry.shape, part.shape) << part.name;
        std::vector<std::byte> bytes(
            static_cast<size_t>(part.shape.elements() * size_of(value.dtype())));
        exported.read_bytes(found, 0, bytes);
        const auto* expected =
            static_cast<const std::byte*>(value.data()) + part.first * size_of(value.dtype());
        EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), expected)) << part.name;
        ++parts;
      }
    }
    EXPECT_EQ(exported.tensors().size(), parts);
  }
};

TEST(CutIntoShards, FillsEachAsFarAsItFits) {
  using Counts = std::vector<int64_t>;
  EXPECT_EQ(cut_into_shards({}, 10), Counts{});
  EXPECT_EQ(cut_into_shards({3, 4, 3}, 10), Counts{3});
  EXPECT_EQ(cut_into_shards({3, 4, 4, 10, 1}, 10), (Counts{2, 1, 1, 1}));
  EXPECT_EQ(cut_into_shards({99, 1, 99}, 10), (Counts{1, 1, 1}));
  EXPECT_EQ(cut_into_shards({1, 1}, 1), (Counts{1, 1}));
}

TEST_F(ExportModelTest, FilesHoldEveryParameterBitForBit) {
  const fs::path run = trained("bf16", {"runtime.precision=BF16"});
  for (const std::string precision : {"checkpoint", "f32", "bf16"}) {
    for (const int64_t shard : {int64_t{1} << 40, int64_t{20'000}, int64_t{1}}) {
      SCOPED_TRACE(concat(precision, " in files of ", shard));
      const fs::path files = directory_ / concat(precision, shard);
      const ExportReport report =
          export_model(run, files, {.precision = precision, .gates = true, .shard_bytes = shard});
      expect_exported(run, files, precision);
      const ShardedSafetensors written(files);
      EXPECT_EQ(written.files(), static_cast<size_t>(report.files));
      EXPECT_EQ(fs::exists(files / kWeightIndexName), report.files > 1);
      EXPECT_TRUE(shard > 1 || report.files == report.tensors);
      EXPECT_TRUE(shard < 1'000'000 || report.files == 1);
      int64_t bytes = 0;
      for (const PlacedTensor& tensor : written.tensors()) {
        bytes += tensor.entry.end - tensor.entry.begin;
      }
      EXPECT_EQ(report.bytes, bytes);
      for (const auto& entry : fs::directory_iterator(files)) {
        EXPECT_NE(entry.path().extension(), ".tmp") << entry.path();
      }
    }
  }
}

TEST_F(ExportModelTest, FilesAreNamedAndIndexedAsTransformersNamesThem) {
  const fs::path run = trained("run");
  const ExportReport report = export_model(run, directory_ / "out", {.shard_bytes = 30'000});
  ASSERT_GT(report.files, 2);
  std::ifstream in(directory_ / "out" / kWeightIndexName);
  const nlohmann::json index = nlohmann::json::parse(in);
  EXPECT_EQ(index.at("metadata").at("total_size"), report.bytes);
  EXPECT_EQ(index.at("weight_map").size(), static_cast<size_t>(report.tensors));
  const std::string count = concat("0000", report.files);
  EXPECT_EQ(index.at("weight_map").at("model.embed_tokens.weight"),
            "model-00001-of-" + count + ".safetensors");
  EXPECT_EQ(index.at("weight_map").at("lm_head.weight"),
            "model-" + count + "-of-" + count + ".safetensors");
  const SafetensorsFile last(directory_ / "out" /
                             ("model-" + count + "-of-" + count + ".safetensors"));
  EXPECT_EQ(last.metadata().at("format"), "pt");
}

TEST_F(ExportModelTest, NothingIsReplaced) {
  const fs::path run = trained("run");
  for (const char* name : {"config.json", "model.safetensors", "model.safetensors.index.json",
                           "model-00007-of-00009.safetensors"}) {
    const fs::path output = directory_ / concat("has_", name);
    fs::create_directory(output);
    std::ofstream(output / name) << "mine";
    support::expect_error([&] { export_model(run, output, {}); },
                          concat("already has ", name, ": give another directory"));
    EXPECT_EQ(std::distance(fs::directory_iterator(output), {}), 1);
  }
}

TEST_F(ExportModelTest, AFailureLeavesNothing) {
  // A vocabulary of 2.4 MiB: the head begins in the third block of a MiB, and is exported last.
  const fs::path run = trained("run", {"model.vocabulary=20000"});
  std::fstream file(saved("run", "00000002") / "d/e000001-r00000-0.shard",
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(4096 + (4 << 20));
  file.put('\x55');
  file.close();
  const fs::path output = directory_ / "out";
  support::expect_error([&] { export_model(run, output, {.shard_bytes = 100'000}); },
                        "head.weight");
  EXPECT_TRUE(fs::is_empty(output));
}

TEST_F(ExportModelTest, WhatAKilledExportLeftIsNoObstacle) {
  const fs::path run = trained("run");
  const fs::path output = directory_ / "out";
  fs::create_directory(output);
  std::ofstream(output / "model.safetensors.tmp") << "half";
  export_model(run, output, {.gates = true});
  expect_exported(run, output, "checkpoint");
  EXPECT_FALSE(fs::exists(output / "model.safetensors.tmp"));
}

}  // namespace
}  // namespace tessera
