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
/// Dtypes are F32, BF16, I32, I64, U16 and U8; a scalar reads as shape [1].

constexpr int64_t kMaxSafetensorsHeader = 100'000'000;  // bytes, the format's own limit

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
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

 private:
  File file_;
  int64_t data_begin_ = 0;
  SafetensorsHeader header_;
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
