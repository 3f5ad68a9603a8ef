#include "runtime/monitor/append_file.h"

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <exception>
#include <system_error>
#include <utility>

#include "kernels/core/log.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

File open_file(const fs::path& path) {
  std::error_code none;  // told by open(), with the name of the file
  fs::create_directories(path.parent_path(), none);
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor < 0) {
    throw Error(ExitCode::kUsage, concat("cannot open ", path.string(), " for writing: ",
                                         std::strerror(errno), "; check that run_dir is writable"));
  }
  return {descriptor, path.string()};
}

bool ends_within_a_line(const File& file) {
  const int64_t size = file.size();
  if (size == 0) return false;
  std::array<std::byte, 1> last{};
  file.read_at(last, size - 1);
  return last[0] != std::byte{'\n'};
}

}  // namespace

AppendFile::AppendFile(fs::path path, Kind kind) : path_(std::move(path)), kind_(kind) {}

void AppendFile::open() {
  if (file_) return;
  file_ = open_file(path_);
  if (kind_ == Kind::kLines && ends_within_a_line(*file_)) write("\n");
}

void AppendFile::write(std::string_view record) {
  const int64_t end = file_->size();
  try {
    file_->write_at(bytes_of(record), end);
  } catch (const Error&) {
    std::error_code none;
    fs::resize_file(path_, static_cast<uintmax_t>(end), none);
    throw;
  }
}

void AppendFile::append(std::string_view record) {
  try {
    open();
    write(record);
  } catch (const std::exception& error) {
    ++missing_;
    if (!std::exchange(told_, true)) {
      log_line(concat("warning: ", error.what(), "; training goes on, and the file lacks this"));
    }
    return;
  }
  if (missing_ > 0) {
    log_line(concat(path_.string(), " is written again; ", missing_, " records are missing"));
    missing_ = 0;
  }
}

}  // namespace tessera
