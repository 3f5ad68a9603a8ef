#include "checkpoint/writer.h"

#include <gtest/gtest.h>

#include "checkpoint/manifest.h"
#include "checkpoint/manifest.pb.h"
#include "tests/checkpoint/saved_checkpoint.h"

namespace tessera {
namespace {

using support::SampleState;
using support::TemporaryDirectory;

// A checkpoint directory in which parts can be written.
class WritePart : public testing::Test {
 protected:
  WritePart() : directory_(place_.path()) {
    directory_.make_directory(kDataName);
    directory_.make_directory(kPartsName);
  }

  void write(const CheckpointContents& contents, int writer) {
    FileIdentity identity;
    identity.run_uuid = std::string(32, '7');
    identity.epoch = 4;
    identity.step = contents.step;
    identity.writer = writer;
    write_part(directory_, identity, contents, [this](const char* stage) { stages_ += stage; });
  }

  wire::Part part(int writer) const {
    const std::string name = concat(kPartsName, "/", part_name(4, writer));
    return parse_part(directory_.read(name, 1 << 20), name);
  }

  TemporaryDirectory place_;
  Directory directory_;
  std::string stages_;
};

TEST_F(WritePart, WritesWhatItAnnounced) {
  const SampleState state(10);
  write(state.contents(), 0);
  const wire::Part part = this->part(0);
  ASSERT_EQ(part.files_size(), 1);
  EXPECT_EQ(part.files(0).path(), "d/e000004-r00000-0.shard");
  EXPECT_EQ(part.files(0).size(), part_bytes(state.contents(), 0));
  EXPECT_EQ(directory_.open(part.files(0).path()).size(), part.files(0).size());
  EXPECT_EQ(part.tensors_size(), 11);
  EXPECT_EQ(part.blobs_size(), 3);
  EXPECT_EQ(part.epoch(), 4);
  EXPECT_TRUE(stages_.starts_with("shard header written")) << stages_;
  EXPECT_TRUE(stages_.ends_with("part writtenpart synced")) << stages_;
}

TEST_F(WritePart, OnlyTheFirstWriterHasBlobs) {
  const SampleState state(10, 1, 2);
  write(state.contents(), 1);
  EXPECT_EQ(part(1).blobs_size(), 0);
  EXPECT_EQ(part(1).files(0).size(), part_bytes(state.contents(), 1));
  EXPECT_LT(part_bytes(state.contents(), 1), part_bytes(state.contents(), 0));
}

TEST_F(WritePart, ARankWithoutRowsWritesNothingOfTheTensor) {
  const SampleState state(10, 6, 7);  // masks has 3 rows
  write(state.contents(), 6);
  const wire::Part part = this->part(6);
  for (const wire::Tensor& tensor : part.tensors()) EXPECT_NE(tensor.name(), "masks");
}

TEST_F(WritePart, NeverWritesOverAFile) {
  const SampleState state(10);
  write(state.contents(), 0);
  EXPECT_THROW(write(state.contents(), 0), Error);
}

TEST_F(WritePart, RefusesContentsThatAreWrong) {
  const support::Tensor tensor(DType::kF32, {4});
  CheckpointContents contents;
  const NamedTensor wrong_shape{"x", Shard::replicated({5}), tensor.view()};
  contents.groups = {{TensorKind::kParameter, {&wrong_shape, 1}}};
  EXPECT_THROW(write(contents, 0), Error);
  const NamedTensor no_name{"", Shard::replicated({4}), tensor.view()};
  contents.groups = {{TensorKind::kParameter, {&no_name, 1}}};
  EXPECT_THROW(write(contents, 0), Error);
  const NamedTensor elsewhere{"x", Shard::replicated({4}), support::plan_view(DType::kF32, {4})};
  contents.groups = {{TensorKind::kParameter, {&elsewhere, 1}}};
  EXPECT_THROW(write(contents, 0), Error);
  contents.groups.clear();
  contents.blobs = {{kConfigBlob, "mine"}};
  EXPECT_THROW(write(contents, 0), Error);
}

}  // namespace
}  // namespace tessera
