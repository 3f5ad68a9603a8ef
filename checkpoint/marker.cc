#include "checkpoint/marker.h"

#include <array>
#include <cstdio>
#include <sstream>

#include "checkpoint/block_file.h"
#include "checkpoint/crc32c.h"

namespace tessera {

namespace {

constexpr std::string_view kWord = "tessera-checkpoint ";
constexpr size_t kCrcDigits = 8;

std::string with_crc(const std::string& text) {
  std::array<char, kCrcDigits + 1> crc{};
  std::snprintf(crc.data(), crc.size(), "%08x", crc32c(bytes_of(text)));
  return text + crc.data() + "\n";
}

// What stands before the CRC, or nothing when the CRC does not belong to it.
std::string_view without_crc(std::string_view text) {
  if (text.size() < kCrcDigits + 1) return {};
  const std::string_view body = text.substr(0, text.size() - kCrcDigits - 1);
  return with_crc(std::string(body)) == text ? body : std::string_view{};
}

}  // namespace

std::string encode_marker(const Marker& marker) {
  return with_crc(concat(kWord, marker.format_major, " ", marker.step, " ", marker.epoch, " ",
                         marker.manifest_bytes, " ", marker.manifest_hash, " "));
}

Marker decode_marker(std::string_view text, const std::string& name) {
  const std::string_view body = without_crc(text);
  if (!body.starts_with(kWord)) {
    throw Error(ExitCode::kBadData, concat(name, " is damaged: it is not one line that begins ",
                                           "with \"", kWord, "\" and ends with its CRC32C"));
  }
  Marker marker;
  std::istringstream words{std::string(body.substr(kWord.size()))};
  words >> marker.format_major;
  if (words && marker.format_major != kFormatMajor) return marker;
  words >> marker.step >> marker.epoch >> marker.manifest_bytes >> marker.manifest_hash;
  if (!words || encode_marker(marker) != text || marker.step < 0 || marker.epoch < 1 ||
      marker.manifest_bytes < 0) {
    throw Error(ExitCode::kBadData, concat(name, " is damaged: expected format, step, epoch, ",
                                           "manifest size and hash"));
  }
  return marker;
}

std::string encode_latest(const std::string& checkpoint) {
  return with_crc(checkpoint + " ");
}

std::string decode_latest(std::string_view text) {
  const std::string_view body = without_crc(text);
  return body.ends_with(" ") ? std::string(body.substr(0, body.size() - 1)) : std::string();
}

}  // namespace tessera
