#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/file_hash.h"
#include "checkpoint/file_io.h"

namespace tessera {

/// A shard file: a header of 4 KiB that says what the file is, then data in blocks of 1 MiB (the
/// last may be shorter), each with a CRC-32C that is kept elsewhere, in the manifest.
constexpr int64_t kHeaderBytes = 4096;
constexpr int64_t kSegmentAlignment = 4096;
constexpr int64_t kBlockBytes = int64_t{1} << 20;
constexpr uint32_t kFormatMajor = 1;
constexpr uint32_t kFormatMinor = 1;

constexpr int64_t aligned_segment(int64_t bytes) {
  return (bytes + kSegmentAlignment - 1) / kSegmentAlignment * kSegmentAlignment;
}

/// What a file is. A reader that expects another one has found a swapped or stale file.
struct FileIdentity {
  std::string run_uuid;  ///< 32 hexadecimal digits
  int64_t epoch = 0;
  int64_t step = 0;
  int writer = 0;  ///< rank that wrote it
  int index = 0;   ///< among the files of this writer

  friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
};

struct FileHeader {
  uint32_t format_major = kFormatMajor;
  uint32_t format_minor = kFormatMinor;
  FileIdentity identity;
  int64_t data_bytes = 0;  ///< that follow the header
  int64_t block_bytes = kBlockBytes;
};

/// The kHeaderBytes bytes of a header, its own CRC-32C last.
std::string encode_header(const FileHeader& header);
/// Throws kBadData, beginning with `name`, unless `bytes` are a header that this program can read.
FileHeader decode_header(std::span<const std::byte> bytes, const std::string& name);

/// What the manifest keeps of a file.
struct FileSummary {
  int64_t size = 0;  ///< bytes, header included
  uint32_t header_crc = 0;
  std::string hash;  ///< XXH3-128 of the whole file
  int64_t block_bytes = kBlockBytes;
  std::vector<uint32_t> block_crcs;
};

/// Writes a new shard file front to back. Checksums are taken from the bytes in memory, before
/// they are written.
class BlockWriter {
 public:
  /// `data_bytes` is what will be appended, padding included.
  BlockWriter(const Directory& directory, const std::string& name, const FileIdentity& identity,
              int64_t data_bytes);

  /// Where the next byte goes, from the start of the file.
  int64_t position() const { return position_; }
  void append(std::span<const std::byte> data);
  /// Zeros up to the next multiple of kSegmentAlignment.
  void pad();
  /// Makes the content durable and closes. Throws when less was appended than announced.
  FileSummary finish();

 private:
  File file_;
  /// The storage works on so many bytes while the next are hashed.
  static constexpr int64_t kSyncBytes = int64_t{8} << 20;

  int64_t end_;
  int64_t position_ = 0;
  int64_t begun_ = 0;  ///< the storage was told to begin with what is before
  int64_t in_block_ = 0;
  Hash128 hash_;
  FileSummary summary_;
};

/// Reads a shard file; every byte that it hands out has passed its block's CRC.
class BlockReader {
 public:
  /// Throws kBadData unless the file has the size, the header and the identity expected.
  BlockReader(File file, const FileIdentity& expected, FileSummary summary);

  const std::string& name() const { return file_.name(); }
  int64_t size() const { return summary_.size; }
  int64_t blocks() const { return static_cast<int64_t>(summary_.block_crcs.size()); }
  /// Where block `block` starts, in bytes from the start of the file.
  int64_t block_offset(int64_t block) const;

  /// Fills `into` from `offset` of the file, within the data. Reads the blocks it touches and no
  /// others; the last one is kept for the next call. Throws kBadData naming file, offset and
  /// `what`, the thing that is read.
  void read(int64_t offset, std::span<std::byte> into, const std::string& what);
  /// The whole block, valid until the next call.
  std::span<const std::byte> block(int64_t block, const std::string& what);
  /// Bytes of blocks read so far.
  int64_t bytes_read() const { return bytes_read_; }
  /// The raw header, for hashing the whole file.
  std::string header_bytes() const;
  /// Throws kBadData when `hash`, of the whole file as just read, is not the recorded one.
  void check_hash(const std::string& hash) const;

 private:
  void read_block(int64_t block, std::span<std::byte> into, const std::string& what);
  int64_t block_length(int64_t block) const;

  File file_;
  FileSummary summary_;
  std::vector<std::byte> cache_;
  int64_t cached_ = -1;
  int64_t bytes_read_ = 0;
};

}  // namespace tessera
