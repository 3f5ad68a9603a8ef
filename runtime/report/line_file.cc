#include "runtime/report/line_file.h"

#include <fstream>
#include <string>

namespace tessera {

LineCount read_lines(const std::filesystem::path& path,
                     const std::function<bool(std::string_view)>& take) {
  LineCount count;
  std::ifstream in(path, std::ios::binary);
  if (!in.is_open() || !std::filesystem::is_regular_file(path)) return count;
  count.exists = true;
  std::string line;
  while (std::getline(in, line) && !in.eof()) {
    ++count.lines;
    if (!take(line)) ++count.damaged;
  }
  return count;
}

}  // namespace tessera
