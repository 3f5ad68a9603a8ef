#include "checkpoint/block_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "checkpoint/crc32c.h"

namespace tessera {

namespace {

constexpr std::string_view kMagic = "TESSERAF";
constexpr size_t kCrcAt = kHeaderBytes - 4;
constexpr std::string_view kDigits = "0123456789abcdef";

// The format is little-endian whatever the machine.
template <class T>
void put(std::string& bytes, size_t at, T value) {
  for (size_t i = 0; i < sizeof value; ++i) {
    bytes[at + i] = static_cast<char>((static_cast<uint64_t>(value) >> (8 * i)) & 0xFF);
  }
}

template <class T>
T get(std::span<const std::byte> bytes, size_t at) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= static_cast<uint64_t>(bytes[at + i]) << (8 * i);
  return static_cast<T>(value);
}

std::string describe(const FileIdentity& identity) {
  return concat("run ", identity.run_uuid, " epoch ", identity.epoch, " step ", identity.step,
                " writer ", identity.writer, " file ", identity.index);
}

[[noreturn]] void damaged(const std::string& message) {
  throw Error(ExitCode::kBadData, message);
}

}  // namespace

std::string encode_header(const FileHeader& header) {
  std::string bytes(kHeaderBytes, '\0');
  kMagic.copy(bytes.data(), kMagic.size());
  put(bytes, 8, header.format_major);
  put(bytes, 12, header.format_minor);
  CHECK(header.identity.run_uuid.size() == 32, "shard header: run uuid is \"",
        header.identity.run_uuid, "\", expected 32 hexadecimal digits");
  for (size_t i = 0; i < 16; ++i) {
    const size_t high = kDigits.find(header.identity.run_uuid[2 * i]);
    const size_t low = kDigits.find(header.identity.run_uuid[2 * i + 1]);
    bytes[16 + i] = static_cast<char>(high * 16 + low);
  }
  put(bytes, 32, header.identity.epoch);
  put(bytes, 40, header.identity.step);
  put(bytes, 48, header.identity.writer);
  put(bytes, 52, header.identity.index);
  put(bytes, 56, header.data_bytes);
  put(bytes, 64, header.block_bytes);
  put(bytes, kCrcAt, crc32c(bytes_of(bytes).first(kCrcAt)));
  return bytes;
}

FileHeader decode_header(std::span<const std::byte> bytes, const std::string& name) {
  if (bytes.size() < kHeaderBytes) {
    damaged(concat(name, " has ", bytes.size(), " bytes, expected a header of ", kHeaderBytes));
  }
  bytes = bytes.first(kHeaderBytes);
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    damaged(concat(name, " does not begin with ", kMagic, ": it is no shard file"));
  }
  const uint32_t crc = crc32c(bytes.first(kCrcAt));
  if (crc != get<uint32_t>(bytes, kCrcAt)) {
    damaged(concat(name, " offset 0: the header's CRC32C is ", crc, ", expected ",
                   get<uint32_t>(bytes, kCrcAt)));
  }
  FileHeader header;
  header.format_major = get<uint32_t>(bytes, 8);
  header.format_minor = get<uint32_t>(bytes, 12);
  if (header.format_major != kFormatMajor) {
    damaged(concat(name, " has format ", header.format_major, ".", header.format_minor,
                   ", this program reads ", kFormatMajor, ".x"));
  }
  for (size_t i = 16; i < 32; ++i) {
    const auto byte = static_cast<size_t>(bytes[i]);
    header.identity.run_uuid += {kDigits[byte / 16], kDigits[byte % 16]};
  }
  header.identity.epoch = get<int64_t>(bytes, 32);
  header.identity.step = get<int64_t>(bytes, 40);
  header.identity.writer = get<int32_t>(bytes, 48);
  header.identity.index = get<int32_t>(bytes, 52);
  header.data_bytes = get<int64_t>(bytes, 56);
  header.block_bytes = get<int64_t>(bytes, 64);
  return header;
}

BlockWriter::BlockWriter(const Directory& directory, const std::string& name,
                         const FileIdentity& identity, int64_t data_bytes)
    : file_(directory.create(name)), end_(kHeaderBytes + data_bytes) {
  const std::string header = encode_header({.identity = identity, .data_bytes = data_bytes});
  summary_.header_crc = get<uint32_t>(bytes_of(header), kCrcAt);
  file_.write_at(bytes_of(header), 0);
  hash_.update(bytes_of(header));
  position_ = kHeaderBytes;
}

void BlockWriter::append(std::span<const std::byte> data) {
  CHECK(position_ + static_cast<int64_t>(data.size()) <= end_, file_.name(), ": ", data.size(),
        " bytes at ", position_, " do not fit into the ", end_, " bytes announced");
  while (!data.empty()) {
    // Pieces of a block: each is still in the cache when it is hashed and written.
    const auto piece = data.first(
        static_cast<size_t>(std::min<int64_t>(std::ssize(data), kBlockBytes - in_block_)));
    if (in_block_ == 0) summary_.block_crcs.push_back(0);
    summary_.block_crcs.back() = crc32c(piece, summary_.block_crcs.back());
    hash_.update(piece);
    file_.write_at(piece, position_);
    position_ += std::ssize(piece);
    if (position_ - begun_ >= kSyncBytes) {
      file_.begin_sync(begun_, position_ - begun_);
      begun_ = position_;
    }
    in_block_ = (in_block_ + std::ssize(piece)) % kBlockBytes;
    data = data.subspan(piece.size());
  }
}

void BlockWriter::pad() {
  static constexpr std::array<std::byte, kSegmentAlignment> kZeros{};
  const int64_t padding = aligned_segment(position_) - position_;
  append(std::span<const std::byte>(kZeros).first(static_cast<size_t>(padding)));
}

FileSummary BlockWriter::finish() {
  CHECK(position_ == end_, file_.name(), ": ", position_, " bytes were written, expected ", end_);
  file_.sync();
  file_.close();
  summary_.size = end_;
  summary_.hash = hash_.hex();
  return std::move(summary_);
}

BlockReader::BlockReader(File file, const FileIdentity& expected, FileSummary summary)
    : file_(std::move(file)), summary_(std::move(summary)) {
  const int64_t size = file_.size();
  if (size != summary_.size) {
    damaged(concat(name(), " has ", size, " bytes, expected ", summary_.size));
  }
  const std::string bytes = header_bytes();
  const FileHeader header = decode_header(bytes_of(bytes), name());
  const auto crc = get<uint32_t>(bytes_of(bytes), kCrcAt);
  if (header.identity != expected) {
    damaged(
        concat(name(), " is of ", describe(header.identity), ", expected ", describe(expected)));
  }
  if (crc != summary_.header_crc || header.data_bytes != size - kHeaderBytes ||
      header.block_bytes != summary_.block_bytes) {
    damaged(concat(name(), " offset 0: the header (CRC32C ", crc, ") is not the one in the ",
                   "manifest (CRC32C ", summary_.header_crc, ")"));
  }
}

std::string BlockReader::header_bytes() const {
  std::string bytes(kHeaderBytes, '\0');
  file_.read_at(std::as_writable_bytes(std::span<char>(bytes.data(), bytes.size())), 0);
  return bytes;
}

int64_t BlockReader::block_offset(int64_t block) const {
  return kHeaderBytes + block * summary_.block_bytes;
}

int64_t BlockReader::block_length(int64_t block) const {
  return std::min(summary_.block_bytes, summary_.size - block_offset(block));
}

void BlockReader::read_block(int64_t block, std::span<std::byte> into, const std::string& what) {
  file_.read_at(into, block_offset(block));
  bytes_read_ += std::ssize(into);
  const uint32_t crc = crc32c(into);
  const uint32_t expected = summary_.block_crcs[static_cast<size_t>(block)];
  if (crc != expected) {
    damaged(concat(name(), " is damaged between bytes ", block_offset(block), " and ",
                   block_offset(block) + std::ssize(into), " (CRC32C is ", crc, ", expected ",
                   expected, "), which hold ", what));
  }
}

std::span<const std::byte> BlockReader::block(int64_t block, const std::string& what) {
  if (cached_ != block) {
    cached_ = -1;
    cache_.resize(static_cast<size_t>(block_length(block)));
    read_block(block, cache_, what);
    cached_ = block;
  }
  return cache_;
}

void BlockReader::read(int64_t offset, std::span<std::byte> into, const std::string& what) {
  CHECK(offset >= kHeaderBytes && offset + std::ssize(into) <= summary_.size, name(), ": bytes ",
        offset, " to ", offset + std::ssize(into), " are not in its data");
  while (!into.empty()) {
    const int64_t number = (offset - kHeaderBytes) / summary_.block_bytes;
    const int64_t skip = offset - block_offset(number);
    const int64_t length = std::min(std::ssize(into), block_length(number) - skip);
    const auto piece = into.first(static_cast<size_t>(length));
    if (length == block_length(number) && cached_ != number) {
      read_block(number, piece, what);
    } else {
      std::memcpy(piece.data(), block(number, what).data() + skip, piece.size());
    }
    into = into.subspan(piece.size());
    offset += length;
  }
}

void BlockReader::check_hash(const std::string& hash) const {
  if (hash != summary_.hash) {
    damaged(concat(name(), " has XXH3-128 ", hash, ", expected ", summary_.hash));
  }
}

}  // namespace tessera
