#include <gtest/gtest.h>

#include <filesystem>

#include "checkpoint/commit.h"
#include "checkpoint/layout.h"
#include "checkpoint/reader.h"
#include "checkpoint/verify.h"
#include "checkpoint/writer.h"
#include "tests/checkpoint/sample_run.h"

// A small checkpoint of every format there has been, in tests/checkpoint/golden: each must load for
// ever. The newest is also the worked example of docs/checkpoint_format.md.

namespace tessera {
namespace {

namespace fs = std::filesystem;
using support::Tensor;

fs::path golden(const std::string& format) {
  return SOURCE_ROOT "/tests/checkpoint/golden/" + format;
}

// The state in each: f32 "matrix" [2, 3] = 1 to 6, of which writer 0 has the first two
// columns, and bf16 "scale" [3] = 1, 0.5, -2, which writer 0 has whole.
void write_state(const fs::path& checkpoints, int writers) {
  const Directory parent(checkpoints);
  parent.make_directory(kFenceName);
  parent.make_directory("format-1.1");
  const Directory checkpoint = parent.subdirectory("format-1.1");
  checkpoint.make_directory(kDataName);
  checkpoint.make_directory(kPartsName);
  const auto ignore = [](const char*) {};
  CheckpointContents contents;
  contents.step = 10;
  contents.consumed_tokens = 640;
  contents.consumed_samples = 20;
  contents.mesh = {{"data", 1}, {"expert", 1}, {"sequence", 1}, {"tensor", 2}};
  contents.blobs = {{"cursor", "position 20"}};
  contents.resolved_config = "steps: 10\n";
  contents.next_step_digest = 0x0123'4567'89AB'CDEF;
  CommitRequest request;
  request.name = "format-1.1";
  request.fence.epoch = 1;
  request.fence.run_uuid = "0123456789abcdef0123456789abcdef";
  request.writers = writers;
  const Tensor scale = support::from_doubles(DType::kBF16, {3}, std::vector<double>{1, 0.5, -2});
  const Tensor left = support::from_doubles(DType::kF32, {2, 2}, std::vector<double>{1, 2, 4, 5});
  const Tensor right = support::from_doubles(DType::kF32, {2, 1}, std::vector<double>{3, 6});
  const std::vector<NamedTensor> first{{"matrix", {{2, 3}, 1, 0, 2}, left.view()},
                                       {"scale", Shard::replicated({3}), scale.view()}};
  const std::vector<NamedTensor> second{{"matrix", {{2, 3}, 1, 2, 1}, right.view()}};
  for (int writer = 0; writer < writers; ++writer) {
    FileIdentity identity;
    identity.run_uuid = request.fence.run_uuid;
    identity.epoch = 1;
    identity.step = 10;
    identity.writer = writer;
    contents.groups = {{TensorKind::kParameter, writer == 0 ? first : second}};
    write_part(checkpoint, identity, contents, ignore);
  }
  commit(parent, checkpoint, request, contents, ignore);
}

void expect_state(const CheckpointReader& reader) {
  verify_checkpoint(reader);
  EXPECT_EQ(reader.facts().id, (CheckpointId{1, 10}));
  EXPECT_EQ(reader.facts().consumed_tokens, 640);
  EXPECT_EQ(reader.facts().mesh[3], (MeshAxis{"tensor", 2}));
  const Tensor matrix(DType::kF32, {2, 3});
  const Tensor scale(DType::kBF16, {3});
  const std::vector<NamedTensor> targets{{"matrix", Shard::replicated({2, 3}), matrix.view()},
                                         {"scale", Shard::replicated({3}), scale.view()}};
  reader.read(TensorKind::kParameter, targets);
  EXPECT_EQ(support::to_doubles(matrix.view()), (std::vector<double>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(support::to_doubles(scale.view()), (std::vector<double>{1, 0.5, -2}));
  EXPECT_EQ(reader.read_blob("cursor"), "position 20");
  EXPECT_EQ(reader.read_blob(kConfigBlob), "steps: 10\n");
}

TEST(Golden, Format10Loads) {
  const CheckpointReader reader(golden("format-1.0"));
  expect_state(reader);
  EXPECT_FALSE(reader.facts().next_step_digest);
}

TEST(Golden, Format11Loads) {
  const CheckpointReader reader(golden("format-1.1"));
  expect_state(reader);
  EXPECT_EQ(reader.facts().next_step_digest, 0x0123'4567'89AB'CDEF);
  EXPECT_TRUE(reader.facts().finite);
}

// What is written today is what was written then: a change of the format needs a new number.
TEST(Golden, Format11IsStillWritten) {
  const support::TemporaryDirectory place;
  write_state(place.path(), 2);
  const Directory now(place.path() / "format-1.1");
  const Directory then(golden("format-1.1"));
  EXPECT_EQ(now.entries(), then.entries());
  for (const std::string& name : then.subdirectory(kDataName).entries()) {
    const std::string file = concat(kDataName, "/", name);
    EXPECT_EQ(now.read(file, 1 << 20), then.read(file, 1 << 20)) << file;
  }
}

}  // namespace
}  // namespace tessera
