#include "checkpoint/commit.h"

#include <gtest/gtest.h>

#include <fstream>

#include "checkpoint/candidates.h"
#include "checkpoint/manifest.h"
#include "checkpoint/manifest.pb.h"
#include "checkpoint/verify.h"
#include "tests/checkpoint/saved_checkpoint.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using support::SampleState;
using support::save_with;
using support::TemporaryDirectory;

// A save of two writers, up to the commit, with `writer_of(rank)` of `parts` blocks each.
class Commit : public testing::Test {
 protected:
  Commit() : checkpoints_(place_.path()), fence_(raise_fence(checkpoints_, 0, "", "")) {
    checkpoints_.make_directory("step-00000010");
    checkpoint_ = checkpoints_.subdirectory("step-00000010");
    checkpoint_.make_directory(kDataName);
    checkpoint_.make_directory(kPartsName);
  }

  void write(int writer, int part, int parts) {
    const SampleState state(10, part, parts);
    FileIdentity identity;
    identity.run_uuid = fence_.run_uuid;
    identity.epoch = fence_.epoch;
    identity.step = 10;
    identity.writer = writer;
    write_part(checkpoint_, identity, state.contents(), [](const char*) {});
  }

  std::string failure_of_commit(int writers) {
    CommitRequest request;
    request.name = "step-00000010";
    request.fence = fence_;
    request.writers = writers;
    CheckpointContents contents = SampleState(10).contents();
    contents.groups.clear();
    try {
      commit(checkpoints_, checkpoint_, request, contents, [](const char*) {});
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  TemporaryDirectory place_;
  Directory checkpoints_;
  Fence fence_;
  Directory checkpoint_;
};

TEST_F(Commit, LeavesMarkerManifestAndDataAndNothingElse) {
  write(0, 0, 2);
  write(1, 1, 2);
  EXPECT_EQ(failure_of_commit(2), "");
  EXPECT_EQ(checkpoint_.entries(), (std::vector<std::string>{"COMMITTED", "MANIFEST.pb", "d"}));
  EXPECT_EQ(checkpoint_.subdirectory("d").entries().size(), 2U);
  verify_checkpoint(CheckpointReader(place_.path() / "step-00000010"));
}

TEST_F(Commit, NeedsEveryPart) {
  write(0, 0, 2);
  EXPECT_NE(failure_of_commit(2).find("e000001-r00001.pb cannot be opened"), std::string::npos);
  EXPECT_FALSE(checkpoint_.contains(kMarkerName));
}

TEST_F(Commit, RefusesHolesAndBlocksThatTwoWritersHave) {
  write(0, 0, 2);
  EXPECT_NE(failure_of_commit(1).find("has elements in no slice or in several"), std::string::npos);
  write(1, 0, 2);
  EXPECT_NE(failure_of_commit(2).find("has elements in no slice or in several"), std::string::npos);
  EXPECT_FALSE(checkpoint_.contains(kMarkerName));
}

TEST_F(Commit, RefusesADataFileThatWasCutOff) {
  write(0, 0, 1);
  const fs::path shard = place_.path() / "step-00000010/d/e000001-r00000-0.shard";
  fs::resize_file(shard, fs::file_size(shard) - 1);
  EXPECT_NE(failure_of_commit(1).find("e000001-r00000-0.shard has"), std::string::npos);
}

TEST_F(Commit, RefusesAPartOfAnotherSave) {
  write(0, 0, 1);
  fence_.epoch = 2;
  fs::rename(place_.path() / "step-00000010/p/e000001-r00000.pb",
             place_.path() / "step-00000010/p/e000002-r00000.pb");
  EXPECT_NE(failure_of_commit(1).find("is of epoch 1 step 10 writer 0, expected epoch 2"),
            std::string::npos);
}

TEST_F(Commit, StopsAtANewerFence) {
  write(0, 0, 1);
  raise_fence(checkpoints_, 0, "", "another job");
  EXPECT_NE(failure_of_commit(1).find("was replaced by incarnation 2"), std::string::npos);
  EXPECT_FALSE(checkpoint_.contains(kMarkerName));
}

// Names that no reader accepts must not become a checkpoint that no reader opens.
TEST(CommittedManifest, IsOneThatItsReaderAccepts) {
  const TemporaryDirectory run;
  CheckpointStore store(run.path(), support::quick_options());
  const SampleState state(10);
  CheckpointContents contents = state.contents();
  contents.blobs["not \xFF UTF-8"] = "x";
  const SaveReport report = store.save(contents);
  EXPECT_FALSE(report.committed);
  EXPECT_NE(report.failure.find("is no Part message"), std::string::npos) << report.failure;
  EXPECT_TRUE(store.list().empty());
}

TEST(MergeParts, RefusesWritersThatDisagree) {
  std::vector<wire::Part> parts(2);
  for (wire::Part& part : parts) {
    wire::Tensor& tensor = *part.add_tensors();
    tensor.set_name("x");
    tensor.set_kind(wire::PARAMETER);
    tensor.set_dtype(wire::F32);
    tensor.add_global_shape(4);
    tensor.set_logical_digest(0xFFFFFFFFFFFFFFFF);
  }
  wire::Manifest manifest;
  merge_parts(parts, manifest);
  ASSERT_EQ(manifest.tensors_size(), 1);
  EXPECT_EQ(manifest.tensors(0).logical_digest(), 0xFFFFFFFFFFFFFFFE);  // mod 2^64
  parts[1].mutable_tensors(0)->set_global_shape(0, 5);
  manifest.Clear();
  EXPECT_THROW(merge_parts(parts, manifest), Error);
}

}  // namespace
}  // namespace tessera
