#include "checkpoint/file_io.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <system_error>
#include <utility>

namespace tessera {

namespace {

constexpr size_t kMaxWrite = size_t{8} << 20;

ExitCode code_of(int error) {
  switch (error) {
    case EACCES:
    case EPERM:
    case EROFS:
    case ENOENT:
    case ENOTDIR:
      return ExitCode::kUsage;
    default:
      return ExitCode::kTryAgain;
  }
}

[[noreturn]] void fail(const char* action, const std::string& name) {
  const int error = errno;
  throw Error(code_of(error),
              concat("cannot ", action, " ", name, ": ", std::generic_category().message(error)));
}

// Opens beneath a directory without following symbolic links. Kernels before 5.6 lack the call;
// there the caller's own check of the name and O_NOFOLLOW on the last part must do.
int open_beneath(int directory, const char* name) {
  open_how how{};
  how.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;  // a pipe must not make us wait
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
  const auto descriptor = static_cast<int>(syscall(SYS_openat2, directory, name, &how, sizeof how));
  if (descriptor >= 0 || (errno != ENOSYS && errno != EPERM)) return descriptor;
  return openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
}

bool is_plain_relative(const std::filesystem::path& name) {
  return !name.empty() && name.is_relative() &&
         std::none_of(name.begin(), name.end(), [](const std::filesystem::path& part) {
           return part == ".." || part == ".";
         });
}

}  // namespace

File::File(int descriptor, std::string name) : descriptor_(descriptor), name_(std::move(name)) {}

File File::open(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail("open", path);
  return {descriptor, path};
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File::File(File&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), name_(std::move(other.name_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(name_, other.name_);
  return *this;
}

int64_t File::size() const {
  struct stat status {};
  if (fstat(descriptor_, &status) != 0) fail("stat", name_);
  if (!S_ISREG(status.st_mode)) {
    throw Error(ExitCode::kBadData, concat(name_, " is not a regular file"));
  }
  return status.st_size;
}

void File::write_at(std::span<const std::byte> data, int64_t offset) {
  while (!data.empty()) {
    const ssize_t written =
        pwrite(descriptor_, data.data(), std::min(data.size(), kMaxWrite), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written == 0) errno = EIO;
    if (written <= 0) fail("write", name_);
    data = data.subspan(static_cast<size_t>(written));
    offset += written;
  }
}

void File::read_at(std::span<std::byte> into, int64_t offset) const {
  while (!into.empty()) {
    const ssize_t got = pread(descriptor_, into.data(), into.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("read", name_);
    if (got == 0) {
      throw Error(ExitCode::kBadData, concat(name_, " ends at byte ", offset, ", expected ",
                                             into.size(), " more bytes"));
    }
    into = into.subspan(static_cast<size_t>(got));
    offset += got;
  }
}

void File::begin_sync(int64_t offset, int64_t bytes) {
  if (sync_file_range(descriptor_, offset, bytes, SYNC_FILE_RANGE_WRITE) == 0) return;
  // Some file systems do not know it. A failed write must be told, sync() may not see it again.
  if (errno != ENOSYS && errno != EINVAL && errno != ESPIPE) fail("write", name_);
}

void File::sync() {
  if (fdatasync(descriptor_) != 0) fail("sync", name_);
}

void File::close() {
  const int descriptor = std::exchange(descriptor_, -1);
  if (::close(descriptor) != 0) fail("close", name_);
}

Directory::Directory(std::filesystem::path path) : path_(std::move(path)) {
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor_ < 0) fail("open directory", path_);
}

Directory::Directory(int descriptor, std::filesystem::path path)
    : descriptor_(descriptor), path_(std::move(path)) {}

Directory::~Directory() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Directory::Directory(Directory&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), path_(std::move(other.path_)) {}

Directory& Directory::operator=(Directory&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(path_, other.path_);
  return *this;
}

File Directory::create(const std::string& name) const {
  const int descriptor =
      openat(descriptor_, name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (descriptor < 0) fail("create", path_ / name);
  return {descriptor, path_ / name};
}

File Directory::open(const std::string& name) const {
  if (!is_plain_relative(name) || name.find('\0') != std::string::npos) {
    throw Error(ExitCode::kBadData,
                concat("\"", name, "\" is no file name within ", path_.string()));
  }
  const int descriptor = open_beneath(descriptor_, name.c_str());
  if (descriptor < 0) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR || error == ELOOP || error == EXDEV ||
        error == ENAMETOOLONG || error == ENXIO) {
      throw Error(ExitCode::kBadData, concat((path_ / name).string(), " cannot be opened: ",
                                             std::generic_category().message(error)));
    }
    fail("open", path_ / name);
  }
  return {descriptor, path_ / name};
}

std::string Directory::read(const std::string& name, int64_t limit) const {
  const File file = open(name);
  const int64_t size = file.size();
  if (size > limit) {
    throw Error(ExitCode::kBadData,
                concat(file.name(), " has ", size, " bytes, expected at most ", limit));
  }
  std::string content(static_cast<size_t>(size), '\0');
  file.read_at(std::as_writable_bytes(std::span<char>(content.data(), content.size())), 0);
  return content;
}

bool Directory::contains(const std::string& name) const {
  struct stat status {};
  if (fstatat(descriptor_, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) return true;
  if (errno != ENOENT) fail("look up", path_ / name);
  return false;
}

std::vector<std::string> Directory::entries() const {
  // A second descriptor, because a directory stream owns and moves its own.
  const int descriptor = openat(descriptor_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail("open directory", path_);
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(descriptor), closedir);
  if (stream == nullptr) fail("read directory", path_);
  std::vector<std::string> names;
  while (true) {
    errno = 0;
    const dirent* entry = readdir(stream.get());
    if (entry == nullptr) break;
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  if (errno != 0) fail("read directory", path_);
  std::sort(names.begin(), names.end());
  return names;
}

bool Directory::make_directory(const std::string& name) const {
  if (mkdirat(descriptor_, name.c_str(), 0755) == 0) return true;
  if (errno != EEXIST) fail("make directory", path_ / name);
  return false;
}

Directory Directory::subdirectory(const std::string& name) const {
  const int descriptor =
      openat(descriptor_, name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (descriptor < 0) fail("open directory", path_ / name);
  return {descriptor, path_ / name};
}

void Directory::replace(const std::string& name, std::string_view content) const {
  const std::string temporary = name + ".tmp";
  if (unlinkat(descriptor_, temporary.c_str(), 0) != 0 && errno != ENOENT) {
    fail("remove", path_ / temporary);
  }
  write_new(temporary, content);
  rename(temporary, name);
  sync();
}

void Directory::write_new(const std::string& name, std::string_view content) const {
  File file = create(name);
  file.write_at(bytes_of(content), 0);
  file.sync();
  file.close();
}

void Directory::rename(const std::string& from, const std::string& to) const {
  if (renameat(descriptor_, from.c_str(), descriptor_, to.c_str()) != 0) {
    fail("rename", concat((path_ / from).string(), " to ", to));
  }
}

void Directory::remove(const std::string& name) const {
  if (unlinkat(descriptor_, name.c_str(), 0) == 0) return;
  if (errno == EISDIR || errno == EPERM) {
    const Directory inner = subdirectory(name);
    for (const std::string& entry : inner.entries()) inner.remove(entry);
    if (unlinkat(descriptor_, name.c_str(), AT_REMOVEDIR) == 0) return;
  }
  if (errno != ENOENT) fail("remove", path_ / name);
}

bool Directory::rename_to_free(const std::string& from, const std::string& to) const {
  if (renameat(descriptor_, from.c_str(), descriptor_, to.c_str()) == 0) return true;
  if (errno != ENOTEMPTY && errno != EEXIST) {
    fail("rename", concat((path_ / from).string(), " to ", to));
  }
  return false;
}

void Directory::remove_empty_directory(const std::string& name) const {
  if (unlinkat(descriptor_, name.c_str(), AT_REMOVEDIR) == 0 || errno == ENOENT) return;
  if (errno != ENOTEMPTY && errno != EEXIST) fail("remove", path_ / name);
}

void Directory::sync() const {
  if (fsync(descriptor_) != 0) fail("sync directory", path_);
}

int64_t Directory::free_bytes() const {
  struct statvfs status {};
  if (fstatvfs(descriptor_, &status) != 0) fail("ask for the free space of", path_);
  return static_cast<int64_t>(status.f_bavail) * static_cast<int64_t>(status.f_frsize);
}

void make_directories(const std::filesystem::path& path) {
  const std::filesystem::path whole = std::filesystem::absolute(path).lexically_normal();
  std::filesystem::path above;
  for (const std::filesystem::path& part : whole) {
    const std::filesystem::path here = above / part;
    std::error_code ignored;
    if (!part.empty() && !std::filesystem::is_directory(here, ignored)) {
      const Directory parent(above);
      parent.make_directory(part);
      parent.sync();
    }
    above = here;
  }
}

}  // namespace tessera
