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

/// A regular file, open for reading at any offset by any number of threads.
/// Read with pread, not mapped: a mapped file that another process cuts short kills the reader
/// with SIGBUS, a short read is an Error; and for whole sequences both are equally fast.
class InputFile {
 public:
  /// Throws Error with `code` when `path` cannot be opened or is not a regular file.
  InputFile(std::filesystem::path path, ExitCode code);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;

  const std::filesystem::path& path() const { return path_; }
  /// Bytes, when it was opened.
  int64_t size() const { return size_; }
  /// Reads up to out.size() bytes; fewer only at the end of the file. Returns how many.
  int64_t read_some(int64_t offset, std::span<std::byte> out) const;
  /// Fills `out`. Throws Error (kBadData) when the file ends before.
  void read(int64_t offset, std::span<std::byte> out) const;
  /// Tells the system that [offset, offset + bytes) is wanted soon. Never waits, never fails.
  void will_need(int64_t offset, int64_t bytes) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
};

/// All bytes of a file. Throws Error with `code` when it cannot be read.
std::string read_file(const std::filesystem::path& path, ExitCode code);

/// A file that appears whole or not at all: bytes go to "<path>.unfinished", which seal() makes
/// durable and publish() renames. Destroyed before publish(), it leaves nothing behind.
/// Throws Error with the system's reason: kUsage for a path that cannot be written, kTryAgain for
/// trouble that may pass, for instance a full disk.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void append(std::span<const std::byte> bytes);
  void append(std::string_view text) { append(std::as_bytes(std::span(text))); }
  /// All bytes are on disk when it returns.
  void seal();
  /// After seal(). Replaces the file at `path`, if any; the new name is durable on return.
  void publish();

 private:
  void flush();

  std::filesystem::path path_;
  std::filesystem::path unfinished_;
  std::vector<std::byte> buffer_;
  int descriptor_ = -1;
  bool sealed_ = false;
};

/// AtomicFile in one call.
void write_file(const std::filesystem::path& path, std::string_view text);

/// Removes a file, durably. Does nothing when there is none.
void remove_file(const std::filesystem::path& path);

}  // namespace tessera
