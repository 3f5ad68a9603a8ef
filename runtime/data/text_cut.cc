#include "runtime/data/text_cut.h"

#include <algorithm>
#include <cstdint>

#include "kernels/core/error.h"

namespace tessera {

namespace {

constexpr size_t kLongestCharacter = 4;

/// The bytes of the UTF-8 character that begins with `byte`; 0 when none does.
size_t character_bytes(char byte) {
  const auto lead = static_cast<uint8_t>(byte);
  if (lead < 0x80) return 1;
  if (lead < 0xC0 || lead >= 0xF8) return 0;
  return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

}  // namespace

size_t text_cut(std::string_view text) {
  CHECK(!text.empty(), "text_cut: text is empty");
  if (const size_t line_end = text.rfind('\n'); line_end != text.npos) return line_end + 1;
  if (const size_t space = text.rfind(' '); space != text.npos && space > 0) return space;
  // The last character begins in one of the last four bytes, if this is UTF-8 at all.
  const size_t least = text.size() - std::min(text.size() - 1, kLongestCharacter - 1);
  for (size_t begin = text.size() - 1; begin >= least; --begin) {
    const size_t bytes = character_bytes(text[begin]);
    if (bytes > 0) return begin + bytes <= text.size() ? text.size() : begin;
  }
  return text.size();
}

}  // namespace tessera
