#include "runtime/import/import_model.h"

#include <gtest/gtest.h>

#include <fstream>
#include <limits>
#include <set>

#include "checkpoint/sharded_safetensors.h"
#include "runtime/config/config.h"
#include "runtime/export/export_model.h"
#include "tests/runtime/training_fixture.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

class ImportModelTest : public support::TrainingFixture {
 protected:
  TrainConfig config_of(const std::string& run, const std::string& precision = "F32") const {
    TrainConfig of = config(run, {"steps=2", "sparsity=", "runtime.precision=" + precision});
    resolve_mesh(of, 1);
    return of;
  }
  /// A run of two steps, exported with its gates into files of 20 kB.
  fs::path exported(const std::string& precision, bool gates = true) {
    EXPECT_EQ(run(config_of("source", precision)), TrainingEnd::kFinished);
    export_model(directory_ / "source", directory_ / "files",
                 {.precision = "f32", .gates = gates, .shard_bytes = 20'000});
    return directory_ / "files";
  }
  ImportReport import(const TrainConfig& into, int64_t piece_elements = int64_t{1} << 26) {
    return import_model(into, {.source = directory_ / "files",
                               .config_name = "run.textproto",
                               .piece_elements = piece_elements});
  }
  /// Fails unless all tensors of the kinds of `kinds` have the same bits.
  static void expect_same(const fs::path& left, const fs::path& right,
                          const std::set<TensorKind>& kinds) {
    const CheckpointReader a(left);
    const CheckpointReader b(right);
    for (const TensorDifference& one : compare_checkpoints(a, b)) {
      EXPECT_FALSE(kinds.contains(one.kind))
          << name_of(one.kind) << " " << one.name << " " << one.reason;
    }
    int compared = 0;
    for (const TensorFacts& facts : b.tensors()) compared += kinds.contains(facts.kind) ? 1 : 0;
    EXPECT_GT(compared, 20);
  }
};

const std::set<TensorKind> kModel{TensorKind::kParameter, TensorKind::kMaster, TensorKind::kBuffer};

// In one piece or in many that cut through every tensor, the state is the same.
TEST_F(ImportModelTest, AnExportComesBackBitForBit) {
  for (const std::string precision : {"F32", "BF16"}) {
    SCOPED_TRACE(precision);
    fs::remove_all(directory_ / "source");
    fs::remove_all(directory_ / "files");
    exported(precision);
    const ImportReport single = import(config_of("single" + precision, precision));
    EXPECT_TRUE(single.initialised.empty());
    EXPECT_GT(single.files, 3);
    expect_same(saved("source", "00000002"), single.checkpoint, kModel);
    const ImportReport pieces = import(config_of("pieces" + precision, precision), 997);
    expect_same_state(single.checkpoint, pieces.checkpoint);
    const CheckpointReader reader(pieces.checkpoint);
    EXPECT_EQ(reader.facts().id.step, 0);
    for (const TensorFacts& facts : reader.tensors()) {
      if (facts.kind != TensorKind::kExpAvg && facts.kind != TensorKind::kExpAvgSq) continue;
      for (const double x : support::to_doubles(whole(reader, facts).view())) EXPECT_EQ(x, 0);
    }
  }
}

TEST_F(ImportModelTest, ATrainingRunGoesOnOnAnyMesh) {
  exported("F32");
  const TrainConfig one = config_of("one");
  const TrainConfig two = config_of("two");
  import(one);
  import(two);
  ASSERT_EQ(run(one), TrainingEnd::kFinished);
  run_on(MeshShape{.tensor = 2}, two);
  ASSERT_EQ(metrics("one").size(), 2u);
  const std::vector<double> alone = metric("one", "loss");
  const std::vector<double> together = metric("two", "loss");
  for (size_t i = 0; i < alone.size(); ++i) EXPECT_NEAR(alone[i], together[i], 1e-4 * alone[i]);
}

TEST_F(ImportModelTest, GatesThatAreMissingBeginAsInANewRun) {
  exported("BF16", /*gates=*/false);
  TrainConfig into = config_of("into", "BF16");
  into.set_seed(7);
  const ImportReport report = import(into, 997);
  EXPECT_FALSE(report.initialised.empty());
  // The gates of a run of that seed that has made no step.
  TrainConfig fresh = config_of("fresh", "BF16");
  fresh.set_seed(7);
  ParameterStore store;
  const Transformer model(fresh.model(), DType::kBF16, Recompute::kNothing, store);
  store.allocate(Device{});
  Stream stream(Device{}, 1);
  store.initialize(stream, 7);
  const CheckpointReader reader(report.checkpoint);
  int compared = 0;
  for (const TensorFacts& facts : reader.tensors()) {
    if (!is_gate_parameter(facts.name) || facts.kind == TensorKind::kExpAvg ||
        facts.kind == TensorKind::kExpAvgSq) {
      continue;
    }
    EXPECT_EQ(support::to_doubles(whole(reader, facts).view()),
              support::to_doubles(store.find(facts.name).value))
        << facts.name;
    ++compared;
  }
  EXPECT_GT(compared, 10);  // values, and masters of those in bf16
}

TEST_F(ImportModelTest, DisagreementsAreToldAllAtOnceAndNothingIsWritten) {
  exported("F32");
  TrainConfig other = config("other", {"model.layers=3", "model.rope_base=500"});
  resolve_mesh(other, 1);
  const std::string path = (directory_ / "files/config.json").string();
  support::expect_error(
      [&] { import(other); },
      concat("run.textproto: model.layers is 3, expected 2 as num_hidden_layers in ", path,
             " says\nrun.textproto: model.rope_base is 500, expected 10000 as rope_theta in ", path,
             " says\ntessera checkpoint import "));
  EXPECT_FALSE(fs::exists(directory_ / "other"));
}

TEST_F(ImportModelTest, ARunWithCheckpointsIsLeftAlone) {
  exported("F32");
  support::expect_error([&] { import(config_of("source")); }, "has checkpoints; choose another");
  EXPECT_TRUE(fs::exists(saved("source", "00000002")));
  EXPECT_FALSE(fs::exists(saved("source", "00000000")));
}

TEST_F(ImportModelTest, AValueThatIsNotFiniteIsFoundAndNothingIsCommitted) {
  const fs::path files = exported("F32");
  const ShardedSafetensors model(files);
  const PlacedTensor& norm = model.find("model.norm.weight");
  fs::path name;
  int64_t data = 0;  // bytes of data in that file
  for (const auto& entry : fs::directory_iterator(files)) {
    if (entry.path().extension() != ".safetensors") continue;
    const SafetensorsFile file(entry.path());
    if (!file.contains("model.norm.weight")) continue;
    name = entry.path();
    for (const SafetensorsEntry& tensor : file.tensors()) data = std::max(data, tensor.end);
  }
  std::fstream out(name, std::ios::in | std::ios::out | std::ios::binary);
  out.seekp(static_cast<int64_t>(fs::file_size(name)) - data + norm.entry.begin + 4 * 5);
  const float odd = std::numeric_limits<float>::infinity();
  out.write(reinterpret_cast<const char*>(&odd), 4);
  out.close();
  support::expect_error([&] { import(config_of("into"), 997); },
                        "tensor model.norm.weight holds inf at element 5, expected finite numbers");
  EXPECT_TRUE(list_checkpoints(directory_ / "into/checkpoints").empty());
}

TEST_F(ImportModelTest, TheSuggestedModelFits) {
  const fs::path files = exported("F32");
  const std::string text = suggested_model(files);
  const TrainConfig suggested = parse_train_config(
      text +
          "batch { sequences: 1 sequence_length: 16 } optimizer { learning_rate: 1 } "
          "steps: 1 run_dir: 'x' data { path: 'x' }",
      "suggestion");
  TrainConfig into = config_of("into");
  *into.mutable_model() = suggested.model();
  into.mutable_model()->mutable_attention()->MergeFrom(config_of("x").model().attention());
  EXPECT_NO_THROW(import(into));
  support::expect_error([&] { suggested_model(directory_ / "none"); }, "is no directory");
}

}  // namespace
}  // namespace tessera
