#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/block_file.h"
#include "checkpoint/checkpoint.h"

namespace tessera {

namespace wire {
class Manifest;
}

/// One tensor of a checkpoint, whole.
struct TensorFacts {
  TensorKind kind = TensorKind::kParameter;
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  uint64_t digest = 0;  ///< logical digest, see digest.h
  int64_t bytes = 0;
  int64_t slices = 0;  ///< pieces in files
};

/// Bytes of a data file, and where in memory they belong.
struct StoredRun {
  int file = 0;
  int64_t offset = 0;  ///< in the file
  int64_t bytes = 0;
  std::byte* to = nullptr;
  int tensor = 0;  ///< that they are of: its number in tensors()
};

/// What the constructor of a reader checks besides marker and manifest.
enum class FileChecks : uint8_t {
  kAll,   ///< size and header of every file
  kNone,  ///< those of a file when it is opened: for ranks that rely on another one's check
};

/// Reads a committed checkpoint into any mesh: a block is put together from all slices that it
/// overlaps, and no more blocks of a file are read than it touches. Every byte handed out has
/// passed its CRC-32C; a tensor that is read whole has passed its logical digest too.
/// Throws Error(kBadData) when the checkpoint is damaged (naming file, bytes and tensor), is of a
/// format that this program cannot read, or does not hold what is asked for.
class CheckpointReader {
 public:
  explicit CheckpointReader(const std::filesystem::path& directory,
                            FileChecks checks = FileChecks::kAll);
  ~CheckpointReader();
  CheckpointReader(CheckpointReader&& other) noexcept;
  CheckpointReader& operator=(CheckpointReader&& other) noexcept;

  const std::filesystem::path& directory() const;
  const CheckpointFacts& facts() const;
  /// Sorted by kind and name.
  const std::vector<TensorFacts>& tensors() const;
  std::vector<std::string> blob_names() const;
  /// Bytes of all files but COMMITTED.
  int64_t bytes() const;

  bool contains(TensorKind kind, const std::string& name) const;
  /// Fills each tensor's `data`, in host memory. The tensors need not be all of the checkpoint.
  /// All are looked up before any is filled: name, global shape and dtype must be the stored ones.
  void read(TensorKind kind, std::span<const NamedTensor> into) const;
  /// In one pass over the files: fewer blocks are read than group by group. Returns how many bytes
  /// of them were.
  int64_t read(std::span<const TensorGroup> into) const;
  /// Where the data of `into`, on any device, are stored, in the order of files and offsets. Checks
  /// what read() looks up, and reads nothing.
  std::vector<StoredRun> locate(std::span<const TensorGroup> into) const;
  bool contains_blob(const std::string& name) const;
  std::string read_blob(const std::string& name) const;

  /// For the rest of this folder: the checked manifest, and one of its files, checked again.
  const wire::Manifest& manifest() const;
  BlockReader open_file(int file) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tessera
