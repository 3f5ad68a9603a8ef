#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace tessera::faults {

enum class CallKind { kOpen, kMakeDirectory, kRead, kWrite, kSync, kClose, kRename, kRemove };
inline constexpr CallKind kCallKinds[] = {
    CallKind::kOpen, CallKind::kMakeDirectory, CallKind::kRead,   CallKind::kWrite,
    CallKind::kSync, CallKind::kClose,         CallKind::kRename, CallKind::kRemove};
const char* name_of(CallKind kind);

/// A system call on a file, as it is made.
struct StorageCall {
  CallKind kind = CallKind::kOpen;
  int descriptor = -1;              ///< the file, or the directory of `path`
  const char* path = nullptr;       ///< of calls that name an entry; relative to `descriptor`
  const char* new_path = nullptr;   ///< of kRename, relative to `descriptor` as well
  bool creates = false;             ///< of kOpen: makes a new file
  int64_t offset = 0;               ///< of kRead and kWrite
  std::span<const std::byte> data;  ///< of kWrite
};

/// What becomes of a call.
struct Verdict {
  int error = 0;                    ///< not 0: it fails with this errno, without being made
  bool lose = false;                ///< of kWrite: succeeds without being made
  size_t write_at_most = SIZE_MAX;  ///< of kWrite: bytes
};

/// Sees every storage call of this program, on any thread, and may change what becomes of it.
class StorageWatcher {
 public:
  virtual ~StorageWatcher() = default;
  virtual Verdict before(const StorageCall& call) = 0;
  /// After a call that was made, with its result.
  virtual void after(const StorageCall&, int64_t) {}
};

/// From now on `watcher` sees all calls; nullptr: nobody does. The linker leads the calls of a
/// program with this file to it (--wrap, in CMakeLists.txt): no line of checkpoint/ knows of it.
void watch_storage(StorageWatcher* watcher);

}  // namespace tessera::faults
