#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/data/token_file.h"

// Feeds any bytes to the parser of token indices. It must accept or throw Error(kBadData), and
// what it accepts must be usable: document starts ascending from 0. The first byte chooses
// whether the header is taken as it is or made right, so that the arrays behind it are reached.

namespace tessera {
namespace {

constexpr size_t kHeaderBytes = 34;

/// A header that fits the size: one sequence for every 20 bytes, and a document index for each.
void mend_header(std::vector<uint8_t>& bytes, uint8_t choice) {
  const uint8_t header[18] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0};
  std::copy_n(header, 17, bytes.begin());
  bytes[17] = (choice & 2) != 0 ? 4 : 8;
  const uint64_t sequences = (bytes.size() - kHeaderBytes) / 20;
  const uint64_t indices = (bytes.size() - kHeaderBytes - 12 * sequences) / 8;
  bytes.resize(kHeaderBytes + 12 * sequences + 8 * indices);
  for (size_t i = 0; i < 8; ++i) {
    bytes[18 + i] = static_cast<uint8_t>(sequences >> (8 * i));
    bytes[26 + i] = static_cast<uint8_t>(indices >> (8 * i));
  }
  if ((choice & 4) == 0) return;
  // Right pointers for the lengths given, as far as those are not negative.
  uint64_t pointer = 0;
  for (size_t s = 0; s < sequences; ++s) {
    bytes[kHeaderBytes + 4 * s + 3] &= 0x7F;
    for (size_t i = 0; i < 8; ++i) {
      bytes[kHeaderBytes + 4 * sequences + 8 * s + i] = static_cast<uint8_t>(pointer >> (8 * i));
    }
    uint64_t length = 0;
    for (size_t i = 0; i < 4; ++i) {
      length |= uint64_t{bytes[kHeaderBytes + 4 * s + i]} << (8 * i);
    }
    pointer += length * (bytes[17] == 4 ? 4 : 2);
  }
}

void check(const TokenIndex& index) {
  const std::vector<int64_t>& starts = index.document_starts;
  const bool usable =
      !starts.empty() && starts.front() == 0 && std::is_sorted(starts.begin(), starts.end());
  if (!usable) __builtin_trap();
}

}  // namespace
}  // namespace tessera

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::vector<uint8_t> bytes(data + 1, data + size);
  if ((data[0] & 1) != 0 && bytes.size() >= tessera::kHeaderBytes) {
    tessera::mend_header(bytes, data[0]);
  }
  try {
    tessera::check(tessera::parse_token_index(std::as_bytes(std::span(bytes)), "fuzz.idx"));
  } catch (const tessera::Error& error) {
    if (error.code() != tessera::ExitCode::kBadData) __builtin_trap();
  }
  return 0;
}
