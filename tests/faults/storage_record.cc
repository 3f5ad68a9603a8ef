#include "tests/faults/storage_record.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "kernels/core/error.h"

namespace tessera::faults {

namespace {

constexpr int64_t kPage = 4096;

ino_t inode_of(int descriptor) {
  struct stat status {};
  CHECK(fstat(descriptor, &status) == 0, "fstat of ", descriptor);
  return status.st_ino;
}

// Of an entry, 0 when there is none.
ino_t inode_of(int directory, const std::string& path) {
  struct stat status {};
  return fstatat(directory, path.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 ? status.st_ino : 0;
}

// The directory that holds `path`, and the name in it.
std::pair<ino_t, std::string> place_of(int directory, const std::filesystem::path& path) {
  if (!path.has_parent_path()) return {inode_of(directory), path};
  return {inode_of(directory, path.parent_path()), path.filename()};
}

bool is_durable(const std::map<ino_t, size_t>& last_sync, ino_t file, size_t at) {
  const auto found = last_sync.find(file);
  return found != last_sync.end() && found->second > at;
}

bool is_durable(const std::map<ino_t, size_t>& last_sync, const Change& change, size_t at) {
  switch (change.kind) {
    case Change::Kind::kWrite:
      return is_durable(last_sync, change.file, at);
    case Change::Kind::kMoveEntry:
      return is_durable(last_sync, change.directory, at) &&
             is_durable(last_sync, change.new_directory, at);
    default:
      return is_durable(last_sync, change.directory, at);
  }
}

void mix(size_t& identity, size_t value) {
  identity = (identity ^ value) * 0x9E3779B97F4A7C15;
  identity ^= identity >> 29;
}

}  // namespace

Verdict StorageRecord::before(const StorageCall& call) {
  if (call.kind == CallKind::kRemove || call.kind == CallKind::kRename) {
    const std::lock_guard lock(mutex_);
    doomed_[{call.descriptor, call.path}] = inode_of(call.descriptor, call.path);
  }
  return {};
}

void StorageRecord::after(const StorageCall& call, int64_t result) {
  if (result < 0) return;
  Change change;
  switch (call.kind) {
    case CallKind::kOpen:
      if (!call.creates) return;
      change.kind = Change::Kind::kAddEntry;
      change.file = inode_of(static_cast<int>(result));
      break;
    case CallKind::kMakeDirectory:
      change.kind = Change::Kind::kAddEntry;
      change.is_directory = true;
      change.file = inode_of(call.descriptor, call.path);
      break;
    case CallKind::kWrite:
      change.kind = Change::Kind::kWrite;
      change.file = inode_of(call.descriptor);
      change.offset = call.offset;
      change.data.assign(reinterpret_cast<const char*>(call.data.data()),
                         static_cast<size_t>(result));
      return add(std::move(change));
    case CallKind::kSync:
      change.kind = Change::Kind::kSync;
      change.file = inode_of(call.descriptor);
      return add(std::move(change));
    case CallKind::kRename:
      change.kind = Change::Kind::kMoveEntry;
      std::tie(change.new_directory, change.new_name) = place_of(call.descriptor, call.new_path);
      break;
    case CallKind::kRemove:
      change.kind = Change::Kind::kRemoveEntry;
      break;
    default:
      return;
  }
  std::tie(change.directory, change.name) = place_of(call.descriptor, call.path);
  if (change.file == 0) {
    const std::lock_guard lock(mutex_);
    change.file = doomed_.at({call.descriptor, call.path});
  }
  add(std::move(change));
}

void StorageRecord::acknowledge(int64_t step) {
  Change change;
  change.acknowledged = step;
  add(std::move(change));
}

void StorageRecord::add(Change change) {
  const std::lock_guard lock(mutex_);
  changes_.push_back(std::move(change));
}

CrashState::CrashState(const std::vector<Change>& changes, size_t end, ino_t root,
                       Unsynced unsynced, std::mt19937_64& random)
    : root_(root) {
  nodes_[root].is_directory = true;
  std::map<ino_t, size_t> last_sync;
  for (size_t i = 0; i < end; ++i) {
    if (changes[i].kind == Change::Kind::kSync) last_sync[changes[i].file] = i;
  }
  for (size_t i = 0; i < end; ++i) {
    const Change& change = changes[i];
    if (change.kind == Change::Kind::kSync || change.kind == Change::Kind::kMessage) continue;
    // A new file exists, in case something comes to point to it.
    nodes_[change.file].is_directory |= change.is_directory;
    const bool durable = is_durable(last_sync, change, i);
    const uint64_t lot = unsynced == Unsynced::kRandom ? random() % 3 : 0;
    if (durable || unsynced == Unsynced::kKept || lot == 1) {
      apply(change);
      mix(identity_, i);
    } else if (lot == 2 && change.kind == Change::Kind::kWrite) {
      tear(change, random);
      mix(identity_, i);
    }
  }
}

void CrashState::apply(const Change& change) {
  switch (change.kind) {
    case Change::Kind::kAddEntry:
      nodes_[change.directory].entries[change.name] = change.file;
      break;
    case Change::Kind::kMoveEntry:
      nodes_[change.new_directory].entries[change.new_name] = change.file;
      [[fallthrough]];
    case Change::Kind::kRemoveEntry: {
      auto& entries = nodes_[change.directory].entries;
      const auto found = entries.find(change.name);
      if (found != entries.end() && found->second == change.file) entries.erase(found);
      break;
    }
    case Change::Kind::kWrite: {
      std::string& data = nodes_[change.file].data;
      const auto begin = static_cast<size_t>(change.offset);
      data.resize(std::max(data.size(), begin + change.data.size()), '\0');
      data.replace(begin, change.data.size(), change.data);
      break;
    }
    default:
      break;
  }
}

void CrashState::tear(const Change& change, std::mt19937_64& random) {
  Change torn = change;
  const auto size = static_cast<int64_t>(change.data.size());
  for (int64_t at = 0; at < size;) {
    const int64_t next =
        std::min(size, (change.offset + at) / kPage * kPage + kPage - change.offset);
    const uint64_t lot = random() % 2;
    mix(identity_, lot);
    if (lot == 0) {
      torn.data.replace(static_cast<size_t>(at), static_cast<size_t>(next - at),
                        static_cast<size_t>(next - at), '\0');
    }
    at = next;
  }
  apply(torn);
}

void CrashState::write_directory(ino_t directory, const std::filesystem::path& place) const {
  for (const auto& [name, inode] : nodes_.at(directory).entries) {
    const Node& node = nodes_.at(inode);
    if (node.is_directory) {
      std::filesystem::create_directory(place / name);
      write_directory(inode, place / name);
    } else {
      std::ofstream(place / name, std::ios::binary) << node.data;
    }
  }
}

void CrashState::write_to(const std::filesystem::path& place) const {
  write_directory(root_, place);
}

}  // namespace tessera::faults
