#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "checkpoint/block_file.h"
#include "checkpoint/crc32c.h"
#include "tests/fuzz/input.h"

// Changes a good shard file: single bytes, its length, the CRC of its header made right again or
// not. The reader must hand out the bytes of the good file or throw Error(kBadData), and a reader
// of the whole file must notice every change.

namespace tessera {
namespace {

constexpr int64_t kDataBytes = 2 * kSegmentAlignment;
constexpr int64_t kSize = kHeaderBytes + kDataBytes;
constexpr int64_t kCrcAt = kHeaderBytes - 4;

FileIdentity good_identity() {
  return {.run_uuid = "0123456789abcdef0123456789abcdef", .epoch = 3, .step = 70, .writer = 2};
}

void mend_header(std::string& bytes) {
  bytes.resize(std::max<size_t>(bytes.size(), kHeaderBytes), '\0');
  const uint32_t crc = crc32c(bytes_of(bytes).first(kCrcAt));
  std::memcpy(&bytes[kCrcAt], &crc, sizeof crc);
}

/// The good file and what the manifest says of it.
struct GoodFile {
  std::string bytes = encode_header({.identity = good_identity(), .data_bytes = kDataBytes});
  FileSummary summary;

  GoodFile() {
    std::memcpy(&summary.header_crc, &bytes[kCrcAt], sizeof summary.header_crc);
    for (int64_t i = 0; i < kDataBytes; ++i) bytes += static_cast<char>(i * i % 251);
    summary.size = kSize;
    summary.hash = hash128(bytes_of(bytes));
    summary.block_crcs = {crc32c(bytes_of(bytes).subspan(kHeaderBytes))};
  }
};

std::string changed(std::string bytes, Input& input) {
  const uint8_t form = input.byte();
  const int changes = form % 8;
  for (int i = 0; i < changes; ++i) {
    // Half of the changes in the fields of the header.
    const int64_t at = input.byte() % 2 == 0 ? input.below(80) : input.below(kSize);
    bytes[static_cast<size_t>(at)] = static_cast<char>(input.byte());
  }
  if ((form & 8) != 0) bytes.resize(static_cast<size_t>(input.below(kSize + 5000)), '\0');
  if ((form & 16) != 0) mend_header(bytes);
  return bytes;
}

/// What a file descriptor for `bytes` reads: memory without a name.
File file_of(const std::string& bytes) {
  const int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
  if (write(descriptor, bytes.data(), bytes.size()) != std::ssize(bytes)) __builtin_trap();
  return {descriptor, "fuzz"};
}

void read(const std::string& bytes, const GoodFile& good, Input& input) {
  bool whole = false;
  try {
    BlockReader reader(file_of(bytes), good_identity(), good.summary);
    const int64_t begin = input.below(kDataBytes);
    std::string piece(static_cast<size_t>(input.below(kDataBytes - begin + 1)), '\0');
    reader.read(kHeaderBytes + begin,
                std::as_writable_bytes(std::span<char>(piece.data(), piece.size())), "a piece");
    if (good.bytes.compare(static_cast<size_t>(kHeaderBytes + begin), piece.size(), piece) != 0) {
      __builtin_trap();
    }
    Hash128 hash;
    hash.update(bytes_of(reader.header_bytes()));
    hash.update(reader.block(0, "the block"));
    reader.check_hash(hash.hex());
    whole = true;
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadData) throw;
  }
  if (whole != (bytes == good.bytes)) __builtin_trap();
}

}  // namespace
}  // namespace tessera

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const tessera::GoodFile good;
  tessera::Input input{data, size};
  const std::string bytes = tessera::changed(good.bytes, input);
  tessera::read(bytes, good, input);
  return 0;
}
