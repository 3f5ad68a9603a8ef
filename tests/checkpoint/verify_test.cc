#include "checkpoint/verify.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "checkpoint/candidates.h"
#include "checkpoint/manifest.pb.h"
#include "checkpoint/marker.h"
#include "kernels/core/random.h"
#include "tests/checkpoint/saved_checkpoint.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using support::SampleState;
using support::save_with;
using support::TemporaryDirectory;

std::string damage(const fs::path& checkpoint) {
  try {
    verify_checkpoint(CheckpointReader(checkpoint));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData) << error.what();
    return error.what();
  }
  return "";
}

std::vector<fs::path> files_of(const fs::path& checkpoint) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(checkpoint)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

void flip(const fs::path& file, uint64_t offset, uint8_t mask) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(static_cast<std::streamoff>(offset));
  const int old = stream.get();
  stream.seekp(static_cast<std::streamoff>(offset));
  stream.put(static_cast<char>(old ^ mask));
}

TEST(Verify, PassesWhatIsRightAndCountsTheBytes) {
  const TemporaryDirectory place;
  const CheckpointReader reader(save_with(3, 10, place.path()));
  VerifyProgress last;
  verify_checkpoint(reader, [&](const VerifyProgress& progress) {
    EXPECT_GT(progress.bytes_done, last.bytes_done);
    last = progress;
  });
  EXPECT_EQ(last.bytes_done, last.bytes_total);
  int64_t bytes = 0;
  for (const fs::path& file : files_of(reader.directory() / "d")) {
    bytes += static_cast<int64_t>(fs::file_size(file));
  }
  EXPECT_EQ(last.bytes_total, bytes);
}

// Every file, padding included: in the whole checkpoint there is no byte that does not count.
TEST(Verify, FindsEverySingleBitFlip) {
  const TemporaryDirectory place;
  const fs::path checkpoint = save_with(2, 10, place.path());
  int flips = 0;
  for (const fs::path& file : files_of(checkpoint)) {
    const uint64_t size = fs::file_size(file);
    const uint64_t stride = std::max<uint64_t>(1, size / 400);
    for (uint64_t offset = 0; offset < size; offset += stride) {
      const auto words = philox(5, 0, offset);
      const uint64_t at = std::min(size - 1, offset + words[0] % stride);
      const auto mask = static_cast<uint8_t>(1U << (words[1] % 8));
      flip(file, at, mask);
      EXPECT_NE(damage(checkpoint), "") << file << " byte " << at;
      flip(file, at, mask);
      ++flips;
    }
  }
  EXPECT_GT(flips, 1000);
  EXPECT_EQ(damage(checkpoint), "");
}

TEST(Verify, FindsBursts) {
  const TemporaryDirectory place;
  const fs::path checkpoint = save_with(1, 10, place.path());
  const std::vector<fs::path> files = files_of(checkpoint / "d");
  const uint64_t size = fs::file_size(files[0]);
  for (uint64_t i = 0; i < 100; ++i) {
    const auto words = philox(6, 0, i);
    const uint64_t at = words[0] % (size - 4);
    const uint32_t burst = words[1] | 1;
    for (uint64_t k = 0; k < 4; ++k) flip(files[0], at + k, static_cast<uint8_t>(burst >> (8 * k)));
    EXPECT_NE(damage(checkpoint), "") << at;
    for (uint64_t k = 0; k < 4; ++k) flip(files[0], at + k, static_cast<uint8_t>(burst >> (8 * k)));
  }
}

TEST(Verify, FindsEveryTruncationAndEveryLostFile) {
  const TemporaryDirectory place;
  const fs::path checkpoint = save_with(2, 10, place.path());
  const fs::path copy = place.path() / "copy";
  for (const fs::path& file : files_of(checkpoint)) {
    const auto size = static_cast<int64_t>(fs::file_size(file));
    fs::copy(file, copy, fs::copy_options::overwrite_existing);
    for (int64_t boundary = 0; boundary <= size; boundary += 4096) {
      for (const int64_t length : {boundary - 1, boundary, boundary + 1}) {
        if (length < 0 || length == size) continue;  // one byte more than the file counts too
        fs::resize_file(file, static_cast<uintmax_t>(length));
        EXPECT_NE(damage(checkpoint), "") << file << " of " << length;
        fs::copy(copy, file, fs::copy_options::overwrite_existing);
      }
    }
    fs::remove(file);
    EXPECT_NE(damage(checkpoint), "") << file;
    fs::copy(copy, file);
  }
  EXPECT_EQ(damage(checkpoint), "");
}

TEST(Verify, FindsShardsSwappedBetweenStepsAndRanks) {
  const TemporaryDirectory place;
  const fs::path ten = save_with(2, 10, place.path());
  const fs::path first = ten / "d/e000001-r00000-0.shard";
  const fs::path second = ten / "d/e000001-r00001-0.shard";
  const fs::path other = save_with(2, 20, place.path()) / "d/e000002-r00000-0.shard";
  const fs::path aside = place.path() / "aside";
  ASSERT_EQ(fs::file_size(first), fs::file_size(other));
  fs::rename(first, aside);
  fs::copy(other, first);
  EXPECT_NE(damage(ten).find("epoch 2 step 20 writer 0 file 0, expected run"), std::string::npos)
      << damage(ten);
  fs::remove(first);
  fs::copy(second, first);
  EXPECT_NE(damage(ten), "");
  fs::rename(aside, first);
  EXPECT_EQ(damage(ten), "");
}

TEST(Verify, NamesFileBytesAndTensors) {
  const TemporaryDirectory place;
  const fs::path checkpoint = save_with(1, 10, place.path());
  flip(checkpoint / "d/e000001-r00000-0.shard", 4100, 1);
  const std::string message = damage(checkpoint);
  EXPECT_NE(message.find("e000001-r00000-0.shard is damaged between bytes 4096 and"),
            std::string::npos);
  EXPECT_NE(message.find("which hold parameter embedding to"), std::string::npos) << message;
}

// A manifest whose digest or blob CRC is a lie, with the right hash in the marker.
TEST(Verify, ChecksDigestsAndBlobsAgainstTheManifest) {
  const TemporaryDirectory place;
  const fs::path checkpoint = save_with(2, 10, place.path());
  const Directory directory(checkpoint);
  const std::string original = directory.read(kManifestName, 1 << 20);
  Marker marker = decode_marker(directory.read(kMarkerName, 1000), "x");
  const auto replace = [&](const wire::Manifest& manifest) {
    const std::string bytes = manifest.SerializeAsString();
    marker.manifest_bytes = std::ssize(bytes);
    marker.manifest_hash = hash128(bytes_of(bytes));
    directory.replace(kManifestName, bytes);
    directory.replace(kMarkerName, encode_marker(marker));
  };
  wire::Manifest manifest;
  ASSERT_TRUE(manifest.ParseFromString(original));
  manifest.mutable_tensors(1)->set_logical_digest(7);
  replace(manifest);
  EXPECT_NE(damage(checkpoint).find("the digest of parameter experts is"), std::string::npos);
  const CheckpointReader reader(checkpoint);
  SampleState state(10);
  EXPECT_THROW(reader.read(state.groups()), Error);

  ASSERT_TRUE(manifest.ParseFromString(original));
  manifest.mutable_blobs(1)->set_crc32c(7);
  replace(manifest);
  EXPECT_NE(damage(checkpoint).find("the CRC32C of blob cursor"), std::string::npos);
  EXPECT_THROW((void)CheckpointReader(checkpoint).read_blob("cursor"), Error);

  // Slices of equal size exchanged: every CRC is right, only the digest knows.
  ASSERT_TRUE(manifest.ParseFromString(original));
  wire::Tensor& experts = *manifest.mutable_tensors(1);
  experts.mutable_slices(0)->Swap(experts.mutable_slices(1));
  experts.mutable_slices(0)->mutable_offset()->Swap(experts.mutable_slices(1)->mutable_offset());
  replace(manifest);
  EXPECT_NE(damage(checkpoint).find("the digest of parameter experts is"), std::string::npos);
}

}  // namespace
}  // namespace tessera
