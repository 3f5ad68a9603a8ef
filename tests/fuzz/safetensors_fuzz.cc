#include <cstddef>
#include <cstdint>
#include <string>

#include "checkpoint/safetensors.h"

// Feeds any text to the reader of safetensors headers. It must accept or throw Error(kBadData), and
// the tensors of what it accepts must lie in the data one after the other, without hole or overlap.

namespace tessera {
namespace {

void parse(const std::string& header, int64_t data_bytes) {
  try {
    int64_t bytes = 0;
    for (const SafetensorsEntry& entry :
         parse_safetensors_header(header, data_bytes, "fuzz").tensors) {
      if (entry.begin < 0 || entry.end > data_bytes ||
          entry.end - entry.begin != entry.shape.elements() * size_of(entry.dtype)) {
        __builtin_trap();
      }
      bytes += entry.end - entry.begin;
    }
    if (bytes != data_bytes) __builtin_trap();
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadData) throw;
  }
}

}  // namespace
}  // namespace tessera

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const int64_t data_bytes = data[0] + 256 * (data[1] % 16);
  tessera::parse(std::string(reinterpret_cast<const char*>(data) + 2, size - 2), data_bytes);
  return 0;
}
