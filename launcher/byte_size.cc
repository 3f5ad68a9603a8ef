#include "launcher/byte_size.h"

#include <charconv>
#include <map>
#include <string_view>

#include "kernels/core/error.h"
#include "runtime/config/wording.h"

namespace tessera {

int64_t parse_byte_size(const std::string& text, const std::string& name) {
  static const std::map<std::string_view, int64_t> kUnits{{"B", 1},
                                                          {"KB", 1'000},
                                                          {"MB", 1'000'000},
                                                          {"GB", 1'000'000'000},
                                                          {"TB", 1'000'000'000'000},
                                                          {"KiB", int64_t{1} << 10},
                                                          {"MiB", int64_t{1} << 20},
                                                          {"GiB", int64_t{1} << 30},
                                                          {"TiB", int64_t{1} << 40}};
  constexpr int64_t kMost = int64_t{1} << 60;
  int64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  const auto unit = kUnits.find(std::string_view(rest, static_cast<size_t>(end - rest)));
  int64_t bytes = 0;
  if (error != std::errc{} || number < 1 || unit == kUnits.end() ||
      __builtin_mul_overflow(number, unit->second, &bytes) || bytes > kMost) {
    throw Error(ExitCode::kUsage,
                concat(name, " is ", in_quotes(text),
                       ", expected a whole number with a unit, as 5GB or 512MiB (B, KB, MB, GB, "
                       "TB, KiB, MiB, GiB, TiB), at most 2^60 bytes"));
  }
  return bytes;
}

}  // namespace tessera
