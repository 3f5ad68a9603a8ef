#include "runtime/report/line_file.h"

#include <fstream>
#include <iterator>
#include <system_error>

namespace tessera {

LineCount read_lines(const std::filesystem::path& path,
                     const std::function<bool(std::string_view)>& take) {
  LineCount count;
  // Looked at before it is opened, which may wait where it is a pipe.
  std::error_code none;
  if (!std::filesystem::is_regular_file(path, none)) return count;
  std::ifstream in(path, std::ios::binary);
  if (!in.is_open()) return count;
  count.exists = true;
  std::string line;
  while (std::getline(in, line) && !in.eof()) {
    ++count.lines;
    if (!take(line)) ++count.damaged;
  }
  return count;
}

std::string read_text(const std::filesystem::path& path, int64_t limit) {
  std::error_code trouble;
  if (!std::filesystem::is_regular_file(path, trouble)) return {};
  if (std::filesystem::file_size(path, trouble) > static_cast<uintmax_t>(limit)) return {};
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace tessera
