#include "runtime/data/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

namespace tessera {

namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;
// Linux moves at most 2 GiB - 4 KiB in one call.
constexpr size_t kCallBytes = size_t{1} << 30;

[[noreturn]] void fail(ExitCode code, const std::filesystem::path& path, const char* action) {
  const int reason = errno;
  throw Error(code, concat(path.string(), ": cannot ", action, ": ",
                           std::generic_category().message(reason)));
}

/// Trouble that passes (a full disk, a failing device) is another thing than a wrong path.
ExitCode code_of_write_error() {
  switch (errno) {
    case EACCES:
    case EPERM:
    case EROFS:
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
      return ExitCode::kUsage;
    default:
      return ExitCode::kTryAgain;
  }
}

[[noreturn]] void fail_write(const std::filesystem::path& path, const char* action) {
  fail(code_of_write_error(), path, action);
}

// A rename or a removal is durable when its directory is.
void sync_directory_of(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail_write(folder, "open");
  const int result = ::fsync(descriptor);
  const int reason = errno;
  ::close(descriptor);
  errno = reason;
  // Some network file systems cannot sync a directory and need not.
  if (result != 0 && reason != EINVAL && reason != ENOTSUP) fail_write(folder, "sync");
}

}  // namespace

InputFile::InputFile(std::filesystem::path path, ExitCode code) : path_(std::move(path)) {
  // O_NONBLOCK: opening a named pipe must fail below, not wait for a writer.
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) fail(code, path_, "open");
  struct stat status {};
  const bool known = ::fstat(descriptor_, &status) == 0;
  if (!known || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    throw Error(code, concat(path_.string(), " is not a regular file"));
  }
  size_ = status.st_size;
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_) {}

int64_t InputFile::read_some(int64_t offset, std::span<std::byte> out) const {
  size_t done = 0;
  while (done < out.size()) {
    const size_t wanted = std::min(out.size() - done, kCallBytes);
    const ssize_t got =
        ::pread(descriptor_, out.data() + done, wanted, offset + static_cast<int64_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(ExitCode::kTryAgain, path_, "read");
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return static_cast<int64_t>(done);
}

void InputFile::read(int64_t offset, std::span<std::byte> out) const {
  const int64_t wanted = static_cast<int64_t>(out.size());
  const int64_t got = read_some(offset, out);
  if (got == wanted) return;
  throw Error(ExitCode::kBadData, concat(path_.string(), ": ends at byte ", offset + got,
                                         ", expected at least ", offset + wanted, " bytes"));
}

void InputFile::will_need(int64_t offset, int64_t bytes) const {
  ::posix_fadvise(descriptor_, offset, bytes, POSIX_FADV_WILLNEED);
}

std::string read_file(const std::filesystem::path& path, ExitCode code) {
  const InputFile file(path, code);
  std::string bytes(static_cast<size_t>(file.size()), '\0');
  file.read(0, std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)), unfinished_(path_) {
  unfinished_ += ".unfinished";
  descriptor_ = ::open(unfinished_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_write(unfinished_, "create");
  buffer_.reserve(kBufferBytes);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!unfinished_.empty()) ::unlink(unfinished_.c_str());
}

void AtomicFile::append(std::span<const std::byte> bytes) {
  CHECK(!sealed_, path_.string(), ": append after seal");
  while (!bytes.empty()) {
    const size_t count = std::min(bytes.size(), kBufferBytes - buffer_.size());
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(count));
    bytes = bytes.subspan(count);
    if (buffer_.size() == kBufferBytes) flush();
  }
}

void AtomicFile::flush() {
  size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t written = ::write(descriptor_, buffer_.data() + done, buffer_.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_write(unfinished_, "write");
    done += static_cast<size_t>(written);
  }
  buffer_.clear();
}

void AtomicFile::seal() {
  if (sealed_) return;
  flush();
  if (::fsync(descriptor_) != 0) fail_write(unfinished_, "sync");
  // Quotas and network file systems may only complain when the file is closed.
  const int result = ::close(std::exchange(descriptor_, -1));
  if (result != 0) fail_write(unfinished_, "close");
  sealed_ = true;
}

void AtomicFile::publish() {
  CHECK(sealed_, path_.string(), ": publish before seal");
  if (::rename(unfinished_.c_str(), path_.c_str()) != 0) fail_write(path_, "create");
  unfinished_.clear();
  sync_directory_of(path_);
}

void write_file(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.append(text);
  file.seal();
  file.publish();
}

void remove_file(const std::filesystem::path& path) {
  if (::unlink(path.c_str()) != 0) {
    if (errno == ENOENT) return;
    fail_write(path, "remove");
  }
  sync_directory_of(path);
}

}  // namespace tessera
