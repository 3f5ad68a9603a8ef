#include "checkpoint/candidates.h"

#include <gtest/gtest.h>

#include <fstream>

#include "checkpoint/manifest.pb.h"
#include "checkpoint/marker.h"
#include "tests/checkpoint/saved_checkpoint.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using support::save_with;
using support::TemporaryDirectory;

void rewrite(const fs::path& file, const std::string& text) {
  std::ofstream(file, std::ios::binary) << text;
}

// Steps 10 (epoch 1), 20 (epoch 2) and 30 (epoch 3).
class Candidates : public testing::Test {
 protected:
  Candidates() {
    for (const int64_t step : {10, 20, 30}) newest_ = save_with(1, step, place_.path());
    checkpoints_ = place_.path() / "checkpoints";
  }

  std::string reason_of_newest() const { return examine_checkpoint(newest_).reason; }

  TemporaryDirectory place_;
  fs::path checkpoints_;
  fs::path newest_;
};

TEST_F(Candidates, AreListedNewestFirst) {
  fs::create_directory(checkpoints_ / "step-00000040");
  fs::create_directory(checkpoints_ / "step-40");
  const std::vector<Candidate> all = list_checkpoints(checkpoints_);
  ASSERT_EQ(all.size(), 4U);
  EXPECT_EQ(all[0].path.filename(), "step-00000040");
  EXPECT_EQ(all[0].state, CandidateState::kUncommitted);
  EXPECT_EQ(all[1].id, (CheckpointId{3, 30}));
  EXPECT_EQ(all[1].state, CandidateState::kValid);
  EXPECT_GT(all[1].bytes, 10'000);
  EXPECT_EQ(all[3].id.step, 10);
  EXPECT_TRUE(list_checkpoints(place_.path() / "none").empty());
}

TEST_F(Candidates, AreFoundByRunByFolderByNameAndByHint) {
  EXPECT_EQ(find_checkpoint(place_.path()), newest_);
  EXPECT_EQ(find_checkpoint(checkpoints_), newest_);
  EXPECT_EQ(find_checkpoint(newest_), newest_);
  EXPECT_EQ(find_checkpoint(checkpoints_ / "step-00000010"), checkpoints_ / "step-00000010");
  EXPECT_EQ(find_checkpoint(checkpoints_ / "latest"), newest_);
  fs::rename(newest_, checkpoints_ / "step-00000030.e000003");
  EXPECT_EQ(find_checkpoint(newest_), checkpoints_ / "step-00000030.e000003");
}

// `latest` is a hint: whatever is in it, the newest valid checkpoint is found.
TEST_F(Candidates, DoNotDependOnTheHint) {
  for (const std::string& text :
       {std::string(), std::string("garbage"), std::string(100, '\0'), std::string(9999, 'x'),
        encode_latest("step-00000099"), encode_latest("../../etc")}) {
    rewrite(checkpoints_ / "latest", text);
    EXPECT_EQ(find_checkpoint(checkpoints_ / "latest"), newest_) << text;
    EXPECT_EQ(find_checkpoint(place_.path()), newest_) << text;
  }
  fs::remove(checkpoints_ / "latest");
  EXPECT_EQ(find_checkpoint(place_.path()), newest_);
}

TEST_F(Candidates, OfADamagedOneTheNextOlderIsTaken) {
  for (const std::string& text : std::vector<std::string>{"", "garbage\n", std::string(60, '\0')}) {
    rewrite(newest_ / "COMMITTED", text);
    EXPECT_EQ(examine_checkpoint(newest_).state, CandidateState::kDamaged) << text;
    EXPECT_NE(reason_of_newest().find("COMMITTED is damaged"), std::string::npos);
    EXPECT_EQ(find_checkpoint(place_.path()), checkpoints_ / "step-00000020");
  }
  fs::remove(newest_ / "COMMITTED");
  EXPECT_EQ(examine_checkpoint(newest_).state, CandidateState::kUncommitted);
  EXPECT_EQ(find_checkpoint(place_.path()), checkpoints_ / "step-00000020");
}

TEST_F(Candidates, WithoutManifestOrWithAnotherOneAreDamaged) {
  fs::copy(checkpoints_ / "step-00000020/MANIFEST.pb", newest_ / "MANIFEST.pb",
           fs::copy_options::overwrite_existing);
  EXPECT_EQ(examine_checkpoint(newest_).state, CandidateState::kDamaged);
  fs::remove(newest_ / "MANIFEST.pb");
  EXPECT_EQ(examine_checkpoint(newest_).state, CandidateState::kDamaged);
  EXPECT_NE(reason_of_newest().find("MANIFEST.pb cannot be opened"), std::string::npos);
}

TEST_F(Candidates, UnderTheNameOfAnotherStepAreDamaged) {
  fs::rename(newest_, checkpoints_ / "step-00000031");
  const Candidate candidate = examine_checkpoint(checkpoints_ / "step-00000031");
  EXPECT_EQ(candidate.state, CandidateState::kDamaged);
  EXPECT_EQ(candidate.reason, "it holds step 30");
}

TEST_F(Candidates, OfAFutureFormatAreToldApartAndNameBothVersions) {
  Marker marker = decode_marker(Directory(newest_).read(kMarkerName, 1000), "x");
  marker.format_major = 9;
  rewrite(newest_ / "COMMITTED", encode_marker(marker));
  EXPECT_EQ(examine_checkpoint(newest_).state, CandidateState::kUnsupported);
  EXPECT_NE(reason_of_newest().find("has checkpoint format 9, this program reads 1"),
            std::string::npos)
      << reason_of_newest();

  // The newest cannot be read: that is said, nothing is moved, nothing older is taken in silence.
  CheckpointStore store(place_.path(), support::quick_options());
  try {
    store.restore([](const CheckpointReader&) {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
  }
  EXPECT_TRUE(fs::exists(newest_));
}

TEST_F(Candidates, ThatNeedAnUnknownFeatureAreUnsupported) {
  wire::Manifest manifest;
  ASSERT_TRUE(manifest.ParseFromString(Directory(newest_).read(kManifestName, 1 << 20)));
  manifest.add_required_features("compression");
  const std::string bytes = manifest.SerializeAsString();
  Marker marker = decode_marker(Directory(newest_).read(kMarkerName, 1000), "x");
  marker.manifest_bytes = std::ssize(bytes);
  marker.manifest_hash = hash128(bytes_of(bytes));
  rewrite(newest_ / "MANIFEST.pb", bytes);
  rewrite(newest_ / "COMMITTED", encode_marker(marker));
  EXPECT_EQ(examine_checkpoint(newest_).state, CandidateState::kUnsupported);
  EXPECT_NE(reason_of_newest().find("needs feature \"compression\""), std::string::npos);
}

TEST(FindCheckpoint, SaysThatThereIsNone) {
  const TemporaryDirectory place;
  for (const char* name : {"", "none", "step-00000001", "checkpoints/step-00000001"}) {
    try {
      find_checkpoint(place.path() / name);
      FAIL() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kNoCheckpoint) << error.what();
    }
  }
}

}  // namespace
}  // namespace tessera
