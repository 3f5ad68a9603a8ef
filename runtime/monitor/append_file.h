#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>

#include "checkpoint/file_io.h"

namespace tessera {

/// A file of the run directory that grows record by record: metrics, events, measures of gates. A
/// record is in the file whole or not at all, so that what follows a failure can be read. Trouble
/// is told once and never ends a run; every later record is tried again.
class AppendFile {
 public:
  enum class Kind : uint8_t {
    kBinary,
    kLines,  ///< a last line that was cut off gets its end, so that it spoils no other
  };
  /// Makes nothing yet.
  AppendFile(std::filesystem::path path, Kind kind);

  const std::filesystem::path& path() const { return path_; }
  /// Makes the file, and the directory that it is in, when there is none. Throws kUsage when it
  /// cannot be written. The first append() does this too, without throwing.
  void open();
  /// Never throws. One write to the system, no wait for the disk.
  void append(std::string_view record);

 private:
  void write(std::string_view record);

  std::filesystem::path path_;
  Kind kind_;
  std::optional<File> file_;
  int64_t missing_ = 0;  ///< records since the last one that was written
  bool told_ = false;
};

}  // namespace tessera
