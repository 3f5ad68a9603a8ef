#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tessera {

/// The one line of COMMITTED, the only thing that makes a directory a checkpoint:
///   "tessera-checkpoint <format major> <step> <epoch> <manifest bytes> <manifest XXH3-128>
///   <CRC-32C of all before it, 8 hexadecimal digits>\n"
/// The first two words and the last one stay the same in every future format.
struct Marker {
  uint32_t format_major = 0;
  int64_t step = 0;
  int64_t epoch = 0;
  int64_t manifest_bytes = 0;
  std::string manifest_hash;
};

std::string encode_marker(const Marker& marker);
/// Throws kBadData, beginning with `name`, unless `text` is exactly what encode_marker writes or
/// a line of another format version with a right CRC; of that only `format_major` is set.
Marker decode_marker(std::string_view text, const std::string& name);

/// The content of `latest`, a hint: "<checkpoint> <CRC-32C>\n".
std::string encode_latest(const std::string& checkpoint);
/// Empty when the hint is damaged.
std::string decode_latest(std::string_view text);

}  // namespace tessera
