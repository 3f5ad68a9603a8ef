#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "tests/faults/storage_calls.h"

namespace tessera::faults {

/// One change of a file system, in the order in which they were made. Files and directories are
/// known by their inode number.
struct Change {
  enum class Kind { kAddEntry, kRemoveEntry, kMoveEntry, kWrite, kSync, kMessage };
  Kind kind = Kind::kMessage;
  ino_t directory = 0;      ///< of an entry, or where it moves from
  ino_t new_directory = 0;  ///< of kMoveEntry
  std::string name;
  std::string new_name;
  ino_t file = 0;  ///< the entry's; what is written or synced
  bool is_directory = false;
  int64_t offset = 0;
  std::string data;
  int64_t acknowledged = 0;  ///< of kMessage: the step
};

/// Records all changes that this program makes while it lives.
class StorageRecord : public StorageWatcher {
 public:
  StorageRecord() { watch_storage(this); }
  ~StorageRecord() override { watch_storage(nullptr); }

  Verdict before(const StorageCall& call) override;
  void after(const StorageCall& call, int64_t result) override;
  /// Step `step` was acknowledged now.
  void acknowledge(int64_t step);
  const std::vector<Change>& changes() const { return changes_; }

 private:
  void add(Change change);

  std::mutex mutex_;
  std::vector<Change> changes_;
  std::map<std::pair<int, std::string>, ino_t> doomed_;  // about to be removed or moved
};

/// What a crash may leave of the changes before it. A change is durable once what it changed was
/// synced after it: the file of a write, the directory of an entry, both directories of a move. Of
/// all others each may be lost or kept, whatever became of those before it; a write may be torn
/// into pages of 4096 bytes, of which the lost ones read as zeros.
class CrashState {
 public:
  enum class Unsynced { kLost, kKept, kRandom };
  /// Of changes [0, end). `root` is the inode of the directory where all happened.
  CrashState(const std::vector<Change>& changes, size_t end, ino_t root, Unsynced unsynced,
             std::mt19937_64& random);

  /// What tells this state from others.
  size_t identity() const { return identity_; }
  /// Makes the files in `place`, which stands for the root.
  void write_to(const std::filesystem::path& place) const;

 private:
  struct Node {
    bool is_directory = false;
    std::string data;
    std::map<std::string, ino_t> entries;
  };

  void apply(const Change& change);
  void tear(const Change& change, std::mt19937_64& random);
  void write_directory(ino_t directory, const std::filesystem::path& place) const;

  ino_t root_;
  std::map<ino_t, Node> nodes_;
  size_t identity_ = 0;
};

}  // namespace tessera::faults
