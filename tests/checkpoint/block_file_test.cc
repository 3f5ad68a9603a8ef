#include "checkpoint/block_file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>

#include "kernels/core/random.h"
#include "tests/checkpoint/sample_run.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using support::TemporaryDirectory;

FileIdentity sample_identity() {
  FileIdentity identity;
  identity.run_uuid = "0123456789abcdef0123456789abcdef";
  identity.epoch = 3;
  identity.step = 12000;
  identity.writer = 5;
  return identity;
}

std::string random_text(size_t count) {
  std::string text(count, '\0');
  for (size_t i = 0; i < count; ++i) text[i] = static_cast<char>(philox(9, 0, i)[0]);
  return text;
}

std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData) << error.what();
    return error.what();
  }
  return "";
}

// A file of 2.5 blocks, written in uneven pieces.
class BlockFile : public testing::Test {
 protected:
  BlockFile() : directory_(place_.path()), data_(random_text(5 << 19)) {
    BlockWriter writer(directory_, "x.shard", sample_identity(), std::ssize(data_));
    for (size_t at = 0; at < data_.size();) {
      const size_t count = std::min<size_t>(1 + (at * 7) % 700'001, data_.size() - at);
      writer.append(bytes_of(std::string_view(data_).substr(at, count)));
      at += count;
    }
    summary_ = writer.finish();
  }

  BlockReader reader() const { return {directory_.open("x.shard"), sample_identity(), summary_}; }

  std::string read(int64_t offset, int64_t count) const {
    std::string text(static_cast<size_t>(count), '\0');
    reader().read(offset, std::as_writable_bytes(std::span<char>(text)), "a tensor");
    return text;
  }

  void change(int64_t offset, char mask) const {
    std::fstream file(place_.path() / "x.shard", std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(offset);
    const auto old = static_cast<char>(file.get());
    file.seekp(offset);
    file.put(static_cast<char>(old ^ mask));
  }

  TemporaryDirectory place_;
  Directory directory_;
  std::string data_;
  FileSummary summary_;
};

TEST_F(BlockFile, ReadsAnyRange) {
  EXPECT_EQ(summary_.size, kHeaderBytes + std::ssize(data_));
  EXPECT_EQ(summary_.block_crcs.size(), 3U);
  const int64_t end = std::ssize(data_);
  for (const auto& [begin, count] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 1},
                                                {0, end},
                                                {kBlockBytes - 1, 2},
                                                {kBlockBytes, kBlockBytes},
                                                {end - 1, 1},
                                                {5, 2 * kBlockBytes},
                                                {end, 0}}) {
    EXPECT_EQ(read(kHeaderBytes + begin, count),
              data_.substr(static_cast<size_t>(begin), static_cast<size_t>(count)));
  }
  EXPECT_THROW((void)read(0, 1), Error);
  EXPECT_THROW((void)read(summary_.size - 1, 2), Error);
}

TEST_F(BlockFile, HashIsOfTheWholeFile) {
  EXPECT_EQ(summary_.hash, hash128(bytes_of(directory_.read("x.shard", 1 << 30))));
}

TEST_F(BlockFile, DamageInABlockIsFoundThereAndOnlyThere) {
  change(kHeaderBytes + kBlockBytes + 100, 4);
  EXPECT_EQ(read(kHeaderBytes, kBlockBytes), data_.substr(0, kBlockBytes));
  const std::string message = refusal([&] { (void)read(kHeaderBytes + kBlockBytes, 1); });
  EXPECT_NE(message.find("x.shard is damaged between bytes 1052672 and 2101248"), std::string::npos)
      << message;
  EXPECT_NE(message.find("which hold a tensor"), std::string::npos) << message;
}

TEST_F(BlockFile, EveryBitOfTheHeaderCounts) {
  for (int64_t bit = 0; bit < 8 * kHeaderBytes; bit += 1 + bit / 600) {
    const auto mask = static_cast<char>(1 << (bit % 8));
    change(bit / 8, mask);
    EXPECT_NE(refusal([&] { (void)reader(); }), "") << bit;
    change(bit / 8, mask);
  }
  (void)reader();
}

TEST_F(BlockFile, KnowsAFileThatIsInTheWrongPlace) {
  for (int field = 0; field < 5; ++field) {
    FileIdentity other = sample_identity();
    if (field == 0) other.run_uuid[0] = 'f';
    if (field == 1) ++other.epoch;
    if (field == 2) ++other.step;
    if (field == 3) ++other.writer;
    if (field == 4) ++other.index;
    const std::string message =
        refusal([&] { BlockReader(directory_.open("x.shard"), other, summary_); });
    EXPECT_NE(message.find("x.shard is of run"), std::string::npos) << field << message;
  }
}

TEST_F(BlockFile, EveryTruncationIsFound) {
  for (int64_t size = summary_.size - 1; size >= 0; size -= 4096) {
    for (const int64_t off : {-1, 0, 1}) {
      if (size + off < 0) continue;
      fs::resize_file(place_.path() / "x.shard", static_cast<uintmax_t>(size + off));
      if (size + off == summary_.size) continue;
      EXPECT_NE(refusal([&] { (void)reader(); }), "") << size + off;
    }
  }
}

TEST_F(BlockFile, AppendsExactlyWhatWasAnnounced) {
  BlockWriter writer(directory_, "y.shard", sample_identity(), 8192);
  writer.append(bytes_of(std::string(5000, 'x')));
  EXPECT_THROW(writer.append(bytes_of(std::string(5000, 'x'))), Error);
  EXPECT_THROW((void)writer.finish(), Error);
  writer.pad();
  EXPECT_EQ(writer.position(), kHeaderBytes + 8192);
  EXPECT_EQ(writer.finish().size, kHeaderBytes + 8192);
  EXPECT_THROW(BlockWriter(directory_, "y.shard", sample_identity(), 0), Error);
}

TEST(ShardHeader, ComesBack) {
  FileHeader header;
  header.identity = sample_identity();
  header.data_bytes = 1 << 20;
  const std::string bytes = encode_header(header);
  ASSERT_EQ(std::ssize(bytes), kHeaderBytes);
  const FileHeader back = decode_header(bytes_of(bytes), "x");
  EXPECT_EQ(back.identity, header.identity);
  EXPECT_EQ(back.data_bytes, header.data_bytes);
  EXPECT_EQ(back.block_bytes, kBlockBytes);
}

TEST(ShardHeader, OfAnotherFormatNamesBothVersions) {
  FileHeader header;
  header.identity = sample_identity();
  header.format_major = 9;
  const std::string message = refusal([&] { decode_header(bytes_of(encode_header(header)), "x"); });
  EXPECT_EQ(message, "x has format 9.1, this program reads 1.x");
}

}  // namespace
}  // namespace tessera
