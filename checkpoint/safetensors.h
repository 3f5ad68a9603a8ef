#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/file_io.h"
#include "kernels/core/tensor_view.h"

namespace tessera {

/// The safetensors format (github.com/huggingface/safetensors): 8 bytes little-endian with the
/// length N of the header, N bytes of JSON, then the data of all tensors without a hole.
/// Dtypes are F32, BF16, F16, I32, I64, U16 and U8; a scalar reads as shape [1].

constexpr int64_t kMaxSafetensorsHeader = 100'000'000;  // bytes, the format's own limit

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;  ///< kU16 for F16, which no kernel knows
  bool is_f16 = false;
  Shape shape;
  int64_t begin = 0;  ///< bytes from the start of the data
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  ///< sorted by name
  std::map<std::string, std::string> metadata;
};

/// Checks a header (the N bytes) against the `data_bytes` bytes that follow it. Throws kBadData,
/// beginning with `name`: names twice, holes, overlaps, sizes that do not fit the shape, unknown
/// dtypes, more than Shape::kMaxRank axes.
SafetensorsHeader parse_safetensors_header(std::string_view header, int64_t data_bytes,
                                           const std::string& name);

/// A file to read from. Throws kUsage when it cannot be opened, kBadData when it is damaged.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::vector<SafetensorsEntry>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  bool contains(const std::string& name) const;
  /// Throws kBadData when there is none of this name.
  const SafetensorsEntry& find(const std::string& name) const;
  /// Fills `into`, in host memory, which must have the stored dtype and shape.
  void read(const std::string& name, const TensorView& into) const;
  /// Fills `into` with the bytes of `entry`, one of tensors(), from its byte `first` on.
  void read_bytes(const SafetensorsEntry& entry, int64_t first, std::span<std::byte> into) const;
  const std::string& path() const { return file_.name(); }

 private:
  File file_;
  int64_t data_begin_ = 0;
  SafetensorsHeader header_;
};

/// Writes a file tensor by tensor, so that only one of them need be in memory.
class SafetensorsWriter {
 public:
  /// Writes the header into `file`, which is new and empty. Of `tensors` name, dtype and shape are
  /// taken; names must differ.
  SafetensorsWriter(File file, std::vector<SafetensorsEntry> tensors,
                    const std::map<std::string, std::string>& metadata = {});

  /// In the order of the file, which is that of append(); begin and end are set.
  const std::vector<SafetensorsEntry>& tensors() const { return tensors_; }
  /// The next tensor, in host memory and of its dtype and shape.
  void append(ConstTensorView data);
  /// After the last one: all is durable but the name of the file.
  void finish();

 private:
  File file_;
  std::vector<SafetensorsEntry> tensors_;
  int64_t data_begin_ = 0;
  size_t next_ = 0;
};

struct SafetensorsTensor {
  std::string name;
  ConstTensorView data;  ///< in host memory
};

/// Writes a file, replacing one at `path` only when all is written. Names must differ.
void write_safetensors(const std::filesystem::path& path,
                       std::span<const SafetensorsTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace tessera
