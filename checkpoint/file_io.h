#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/error.h"

namespace tessera {

/// Files as checkpoints need them: every short write, failed sync and failed close is an error,
/// nothing is mapped into memory, and nothing outside of a given directory is reached.
///
/// Trouble of the storage (no space, I/O error) throws Error(kTryAgain); what the user can mend
/// (permissions, a missing directory) Error(kUsage); damage, such as a file that a checkpoint
/// names and that is not there or too short, Error(kBadData). All name the file.

/// Owns a file descriptor. Move-only; the destructor closes without checking.
class File {
 public:
  File() = default;
  File(int descriptor, std::string name);
  /// For reading a file that the user names. Throws kUsage when it cannot be opened.
  static File open(const std::filesystem::path& path);
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;

  const std::string& name() const { return name_; }
  int64_t size() const;
  /// All of `data`, at `offset` bytes.
  void write_at(std::span<const std::byte> data, int64_t offset);
  /// Fills `into` from `offset`. Throws when the file ends before.
  void read_at(std::span<std::byte> into, int64_t offset) const;
  /// Lets the storage begin with these bytes while more are prepared. sync() is needed as well.
  void begin_sync(int64_t offset, int64_t bytes);
  /// To stable storage. After a failure the content is unknown: write it to a new file.
  void sync();
  /// Checked: network file systems report a full disk here.
  void close();

 private:
  int descriptor_ = -1;
  std::string name_;
};

/// An open directory: operations go to this very directory, even when it is renamed meanwhile.
class Directory {
 public:
  Directory() = default;
  /// Throws kUsage when there is none at `path`.
  explicit Directory(std::filesystem::path path);
  ~Directory();
  Directory(Directory&& other) noexcept;
  Directory& operator=(Directory&& other) noexcept;

  /// Where it was when it was opened.
  const std::filesystem::path& path() const { return path_; }
  /// A new file for writing; throws when `name` exists.
  File create(const std::string& name) const;
  /// A file for reading. `name` may have parts, as "d/x", but may not leave the directory, not
  /// by ".." and not by a symbolic link: that throws kBadData, as does a missing file.
  File open(const std::string& name) const;
  /// All of a file of at most `limit` bytes; kBadData when it is larger.
  std::string read(const std::string& name, int64_t limit) const;
  bool contains(const std::string& name) const;
  /// Names of the entries, sorted, without "." and "..".
  std::vector<std::string> entries() const;

  /// Makes a subdirectory; false when the name exists.
  bool make_directory(const std::string& name) const;
  Directory subdirectory(const std::string& name) const;
  /// Atomically and durably: `name` holds all of `content` or what it held before.
  void replace(const std::string& name, std::string_view content) const;
  /// A new file that holds `content`, durable once this directory is synced.
  void write_new(const std::string& name, std::string_view content) const;
  void rename(const std::string& from, const std::string& to) const;
  /// Renames a directory; false, and nothing is done, when `to` is a directory that holds
  /// something.
  bool rename_to_free(const std::string& from, const std::string& to) const;
  /// Removes a file, or a directory with all it holds; does not follow symbolic links.
  void remove(const std::string& name) const;
  /// Removes a directory that is empty; leaves any other alone.
  void remove_empty_directory(const std::string& name) const;
  /// Makes creations, renames and removals of entries durable.
  void sync() const;
  /// Bytes that this process may still write on this file system.
  int64_t free_bytes() const;

 private:
  Directory(int descriptor, std::filesystem::path path);

  int descriptor_ = -1;
  std::filesystem::path path_;
};

/// Makes `path` and what is missing above it, durably.
void make_directories(const std::filesystem::path& path);

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span<const char>(text.data(), text.size()));
}

}  // namespace tessera
