#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace tessera {

/// What reading a file of lines came to.
struct LineCount {
  bool exists = false;
  int64_t lines = 0;
  int64_t damaged = 0;  ///< of them, those that `take` refused
};

/// Gives each line of a file to `take`, which returns whether it understood it. The last line of a
/// run in progress may be unfinished: without its end it is left out and not counted. Throws
/// nothing of its own; a file that cannot be read does not exist.
LineCount read_lines(const std::filesystem::path& path,
                     const std::function<bool(std::string_view)>& take);

/// All of a regular file of at most `limit` bytes; empty when it is none or larger.
std::string read_text(const std::filesystem::path& path, int64_t limit);

}  // namespace tessera
