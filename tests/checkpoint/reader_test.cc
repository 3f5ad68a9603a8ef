#include "checkpoint/reader.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "tests/checkpoint/saved_checkpoint.h"

namespace tessera {
namespace {

using support::SampleState;
using support::save_with;
using support::TemporaryDirectory;

std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// Any number of ranks reads what any number has written.
TEST(CheckpointReader, ReadsEveryMeshIntoEveryMesh) {
  for (const int writers : {1, 2, 3, 5}) {
    const TemporaryDirectory place;
    const CheckpointReader reader(save_with(writers, 70, place.path()));
    for (const int readers : {1, 2, 4, 5, 7}) {
      for (int rank = 0; rank < readers; ++rank) {
        SampleState state(70, rank, readers);
        state.fill(0x5A);
        reader.read(state.groups());
        EXPECT_EQ(state, SampleState(70, rank, readers)) << writers << " to " << readers;
      }
    }
  }
}

TEST(CheckpointReader, DigestsDoNotDependOnTheMesh) {
  const TemporaryDirectory place;
  const TemporaryDirectory other;
  const CheckpointReader one(save_with(1, 70, place.path()));
  const CheckpointReader three(save_with(3, 70, other.path()));
  ASSERT_EQ(one.tensors().size(), three.tensors().size());
  for (size_t i = 0; i < one.tensors().size(); ++i) {
    EXPECT_EQ(one.tensors()[i].digest, three.tensors()[i].digest) << one.tensors()[i].name;
    EXPECT_NE(one.tensors()[i].digest, 0U);
  }
}

TEST(CheckpointReader, KnowsWhatItHolds) {
  const TemporaryDirectory place;
  const CheckpointReader reader(save_with(2, 70, place.path()));
  EXPECT_EQ(reader.facts().id.step, 70);
  EXPECT_TRUE(reader.contains(TensorKind::kExpAvg, "embedding"));
  EXPECT_FALSE(reader.contains(TensorKind::kExpAvg, "head"));
  EXPECT_EQ(reader.tensors().size(), 11U);
  EXPECT_EQ(reader.tensors()[0].name, "embedding");
  EXPECT_EQ(reader.tensors()[0].shape, (Shape{37, 24}));
  EXPECT_EQ(reader.tensors()[0].bytes, 37 * 24 * 2);
  EXPECT_EQ(reader.tensors()[0].slices, 2);
  EXPECT_EQ(reader.blob_names(), (std::vector<std::string>{kConfigBlob, "cursor", "empty"}));
  EXPECT_EQ(reader.read_blob("cursor"), "position 70");
  EXPECT_TRUE(reader.contains_blob("empty"));
  EXPECT_FALSE(reader.contains_blob("none"));
}

// A byte of the second of three blocks is wrong: only who reads that block notices.
TEST(CheckpointReader, ReadsOnlyTheBlocksItNeeds) {
  const TemporaryDirectory place;
  const Shape shape{3 * 1024, 256};  // 1 KiB a row, 1024 rows a block
  const support::Tensor tensor = support::random_tensor(DType::kF32, shape, 1);
  const NamedTensor whole{"x", Shard::replicated(shape), tensor.view()};
  CheckpointContents contents;
  contents.groups = {{TensorKind::kParameter, {&whole, 1}}};
  CheckpointStore store(place.path(), support::quick_options());
  const SaveReport report = store.save(contents);
  ASSERT_TRUE(report.committed) << report.failure;
  const CheckpointReader reader(report.path);
  std::fstream file(report.path / "d/e000001-r00000-0.shard", std::ios::in | std::ios::out);
  file.seekp(4096 + (1 << 20) + 12345);
  file.put('?');
  file.close();
  const auto damage_in = [&](int64_t begin, int64_t length) {
    const support::Tensor rows(DType::kF32, {length, 256});
    const NamedTensor target{"x", {shape, 0, begin, length}, rows.view()};
    const std::string message = refusal([&] { reader.read(TensorKind::kParameter, {&target, 1}); });
    if (message.empty()) {
      EXPECT_EQ(std::memcmp(rows.view().data(), tensor.view().rows(begin, length).data(),
                            static_cast<size_t>(rows.view().bytes())),
                0);
    }
    return message;
  };
  EXPECT_EQ(damage_in(0, 1024), "");
  EXPECT_EQ(damage_in(2048, 1024), "");
  EXPECT_NE(damage_in(1023, 2).find("between bytes 1052672 and 2101248"), std::string::npos);
  EXPECT_NE(damage_in(0, 3072).find("which hold parameter x"), std::string::npos);
}

TEST(CheckpointReader, SaysWhatIsMissingOrOfAnotherKind) {
  const TemporaryDirectory place;
  const CheckpointReader reader(save_with(1, 70, place.path()));
  const support::Tensor tensor(DType::kF32, {37, 24});
  const auto read = [&](TensorKind kind, const std::string& name, const TensorView& view) {
    const NamedTensor target{name, Shard::replicated(view.shape()), view};
    return refusal([&] { reader.read(kind, {&target, 1}); });
  };
  EXPECT_NE(read(TensorKind::kMaster, "head", tensor).find("holds no master head"),
            std::string::npos);
  EXPECT_NE(read(TensorKind::kParameter, "embedding", tensor)
                .find("parameter embedding is bf16 [37, 24], expected f32 [37, 24]"),
            std::string::npos);
  EXPECT_NE(refusal([&] { (void)reader.read_blob("none"); }).find("holds no blob none"),
            std::string::npos);
}

TEST(CheckpointReader, RefusesAViewThatIsNotTheBox) {
  const TemporaryDirectory place;
  const CheckpointReader reader(save_with(1, 70, place.path()));
  const support::Tensor tensor(DType::kBF16, {36, 24});
  const NamedTensor target{"embedding", Shard::replicated({37, 24}), tensor.view()};
  EXPECT_NE(refusal([&] {
              reader.read(TensorKind::kParameter, {&target, 1});
            }).find("is [36, 24], expected the box's [37, 24]"),
            std::string::npos);
}

TEST(CheckpointReader, SaysWhyADirectoryIsNoCheckpoint) {
  const TemporaryDirectory place;
  EXPECT_NE(refusal([&] { CheckpointReader reader(place.path()); }).find("it has no COMMITTED"),
            std::string::npos);
  EXPECT_NE(refusal([&] {
              CheckpointReader reader(place.path() / "none");
            }).find("cannot open directory"),
            std::string::npos);
}

}  // namespace
}  // namespace tessera
