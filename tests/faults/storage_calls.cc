#include "tests/faults/storage_calls.h"

#include <fcntl.h>
#include <sys/types.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>

namespace tessera::faults {

namespace {

std::atomic<StorageWatcher*>& watcher() {
  static std::atomic<StorageWatcher*> installed = nullptr;
  return installed;
}

// Makes the call as the watcher allows: `make` gets the bytes that it may write.
template <class Make>
auto watched(const StorageCall& call, Make make) -> decltype(make(size_t{0})) {
  StorageWatcher* const seen_by = watcher();
  if (seen_by == nullptr) return make(call.data.size());
  const Verdict verdict = seen_by->before(call);
  if (verdict.lose) return static_cast<decltype(make(0))>(call.data.size());
  if (verdict.error != 0) {
    errno = verdict.error;
    return -1;
  }
  const auto result = make(std::min(call.data.size(), verdict.write_at_most));
  const int error = errno;
  seen_by->after(call, result);
  errno = error;
  return result;
}

}  // namespace

const char* name_of(CallKind kind) {
  switch (kind) {
    case CallKind::kOpen:
      return "open";
    case CallKind::kMakeDirectory:
      return "mkdir";
    case CallKind::kRead:
      return "read";
    case CallKind::kWrite:
      return "write";
    case CallKind::kSync:
      return "sync";
    case CallKind::kClose:
      return "close";
    case CallKind::kRename:
      return "rename";
    case CallKind::kRemove:
      return "remove";
  }
  return "?";
}

void watch_storage(StorageWatcher* new_watcher) {
  watcher() = new_watcher;
}

// The names are the linker's: __real_x is the function that __wrap_x stands in front of.
extern "C" {
int __real_open(const char* path, int flags, ...);
int __real_openat(int directory, const char* path, int flags, ...);
int __real_mkdirat(int directory, const char* path, mode_t mode);
ssize_t __real_pread(int file, void* into, size_t bytes, off_t offset);
ssize_t __real_pwrite(int file, const void* data, size_t bytes, off_t offset);
int __real_fdatasync(int file);
int __real_fsync(int file);
int __real_close(int file);
int __real_renameat(int directory, const char* path, int new_directory, const char* new_path);
int __real_unlinkat(int directory, const char* path, int flags);

int __wrap_open(const char* path, int flags, ...) {
  std::va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return watched({.kind = CallKind::kOpen, .descriptor = AT_FDCWD, .path = path, .data = {}},
                 [=](size_t) { return __real_open(path, flags, mode); });
}

int __wrap_openat(int directory, const char* path, int flags, ...) {
  std::va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return watched({.kind = CallKind::kOpen,
                  .descriptor = directory,
                  .path = path,
                  .creates = (flags & O_CREAT) != 0,
                  .data = {}},
                 [=](size_t) { return __real_openat(directory, path, flags, mode); });
}

int __wrap_mkdirat(int directory, const char* path, mode_t mode) {
  return watched(
      {.kind = CallKind::kMakeDirectory, .descriptor = directory, .path = path, .data = {}},
      [=](size_t) { return __real_mkdirat(directory, path, mode); });
}

ssize_t __wrap_pread(int file, void* into, size_t bytes, off_t offset) {
  return watched({.kind = CallKind::kRead, .descriptor = file, .offset = offset, .data = {}},
                 [=](size_t) { return __real_pread(file, into, bytes, offset); });
}

ssize_t __wrap_pwrite(int file, const void* data, size_t bytes, off_t offset) {
  return watched({.kind = CallKind::kWrite,
                  .descriptor = file,
                  .offset = offset,
                  .data = {static_cast<const std::byte*>(data), bytes}},
                 [=](size_t allowed) { return __real_pwrite(file, data, allowed, offset); });
}

int __wrap_fdatasync(int file) {
  return watched({.kind = CallKind::kSync, .descriptor = file, .data = {}},
                 [=](size_t) { return __real_fdatasync(file); });
}

int __wrap_fsync(int file) {
  return watched({.kind = CallKind::kSync, .descriptor = file, .data = {}},
                 [=](size_t) { return __real_fsync(file); });
}

int __wrap_close(int file) {
  return watched({.kind = CallKind::kClose, .descriptor = file, .data = {}},
                 [=](size_t) { return __real_close(file); });
}

int __wrap_renameat(int directory, const char* path, int new_directory, const char* new_path) {
  return watched({.kind = CallKind::kRename,
                  .descriptor = directory,
                  .path = path,
                  .new_path = new_path,
                  .data = {}},
                 [=](size_t) { return __real_renameat(directory, path, new_directory, new_path); });
}

int __wrap_unlinkat(int directory, const char* path, int flags) {
  return watched({.kind = CallKind::kRemove, .descriptor = directory, .path = path, .data = {}},
                 [=](size_t) { return __real_unlinkat(directory, path, flags); });
}
}

}  // namespace tessera::faults
