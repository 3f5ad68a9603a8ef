#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "checkpoint/block_file.h"
#include "checkpoint/crc32c.h"
#include "checkpoint/marker.h"

// Feeds any bytes to the parsers of shard headers, markers and the hint `latest`. They must accept
// or throw Error(kBadData), and what they accept must be written as it was read. The first byte
// chooses the parser, and whether the CRC is made right, so that what lies behind it is reached.

namespace tessera {
namespace {

void parse_header(std::string bytes, bool mend) {
  if (mend) {
    bytes.resize(kHeaderBytes);
    bytes.replace(0, 8, "TESSERAF");
    const uint32_t crc = crc32c(bytes_of(bytes).first(kHeaderBytes - 4));
    for (size_t i = 0; i < 4; ++i) bytes[kHeaderBytes - 4 + i] = static_cast<char>(crc >> (8 * i));
  }
  try {
    const FileHeader header = decode_header(bytes_of(bytes), "fuzz");
    const FileHeader again = decode_header(bytes_of(encode_header(header)), "fuzz");
    if (again.identity != header.identity || again.data_bytes != header.data_bytes ||
        again.block_bytes != header.block_bytes) {
      __builtin_trap();
    }
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadData) throw;
  }
}

void parse_marker(std::string text, bool mend) {
  // encode_latest appends a space, the CRC and a line end, which is how a marker ends too.
  if (mend) text = encode_latest("tessera-checkpoint 1 " + text);
  try {
    const Marker marker = decode_marker(text, "fuzz");
    if (marker.format_major == kFormatMajor && encode_marker(marker) != text) __builtin_trap();
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadData) throw;
  }
  const std::string hint = decode_latest(text);
  if (!hint.empty() && encode_latest(hint) != text) __builtin_trap();
}

}  // namespace
}  // namespace tessera

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  const bool mend = (data[0] & 1) != 0;
  if ((data[0] & 2) != 0) {
    tessera::parse_header(rest, mend);
  } else {
    tessera::parse_marker(rest, mend);
  }
  return 0;
}
