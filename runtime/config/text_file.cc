#include "runtime/config/text_file.h"

#include <algorithm>
#include <fstream>
#include <vector>

#include "kernels/core/error.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMostBytes = 1 << 20;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ExitCode::kUsage, message);
}

std::string nearest_file(const fs::path& file) {
  std::vector<std::string> names;
  std::error_code ignored;
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  for (fs::directory_iterator it(folder, ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    if (it->path().extension() == ".textproto") names.push_back(it->path().filename());
  }
  std::sort(names.begin(), names.end());
  return names.empty() ? "" : did_you_mean(file.filename().string(), names);
}

}  // namespace

void check_is_text(std::string_view text, const std::string& name) {
  if (text.size() > kMostBytes) {
    refuse(concat(name, " has more than ", kMostBytes, " bytes, too many for a configuration"));
  }
  const auto odd = std::find_if(text.begin(), text.end(), [](unsigned char c) {
    return (c < 0x20 && (c < '\t' || c > '\r')) || c == 0x7F;
  });
  if (odd == text.end()) return;
  refuse(concat(name, " holds the byte ", in_quotes({odd, odd + 1}), " at offset ",
                odd - text.begin(), ", expected a text file"));
}

std::string read_text_file(const fs::path& file) {
  std::error_code error;
  const fs::file_status status = fs::status(file, error);
  if (!fs::exists(status)) {
    refuse(concat("configuration ", file.string(), " does not exist", nearest_file(file)));
  }
  // A pipe or a device might never end.
  if (!fs::is_regular_file(status)) {
    refuse(concat("configuration ", file.string(), " is not a regular file"));
  }
  std::ifstream in(file, std::ios::binary);
  std::string text(kMostBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!in && !in.eof()) {
    refuse(concat("configuration ", file.string(), " cannot be read; check its permissions"));
  }
  text.resize(static_cast<size_t>(in.gcount()));
  return text;
}

}  // namespace tessera
