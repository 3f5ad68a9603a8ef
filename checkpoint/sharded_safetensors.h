#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors.h"
#include "checkpoint/weight_index.h"

namespace tessera {

/// The tensors of a model in one or several safetensors files of a directory, as Hugging Face lays
/// them down: model.safetensors, or model.safetensors.index.json and the files it names.

constexpr const char* kOneFileName = "model.safetensors";

/// A tensor, and the number of the file that holds it.
struct PlacedTensor {
  SafetensorsEntry entry;
  size_t file = 0;
};

/// The tensors of `files` (their names, and what their headers list), sorted by name, checked
/// against the index: throws kBadData, beginning with `name`, unless it names every tensor of
/// every file and nothing else, each in the file that holds it. Needs no file.
struct ListedFile {
  std::string name;
  std::span<const SafetensorsEntry> tensors;
};
std::vector<PlacedTensor> place_tensors(std::span<const ListedFile> files, const WeightMap& index,
                                        const std::string& name);

class ShardedSafetensors {
 public:
  /// Reads index and headers. model.safetensors is taken when it is there. Throws kBadData when
  /// files are missing or damaged, or do not hold what the index says. Files may be symbolic links,
  /// as in the cache of Hugging Face; names in the index may not leave the directory.
  explicit ShardedSafetensors(const std::filesystem::path& directory);

  /// Sorted by name.
  const std::vector<PlacedTensor>& tensors() const { return tensors_; }
  size_t files() const { return files_.size(); }
  /// Throws kBadData when there is none of this name.
  const PlacedTensor& find(std::string_view name) const;
  /// Fills `into` with the bytes of a tensor, one of tensors(), from its byte `first` on.
  void read_bytes(const PlacedTensor& tensor, int64_t first, std::span<std::byte> into) const;

 private:
  void open_indexed(const std::filesystem::path& directory);

  std::vector<SafetensorsFile> files_;
  std::vector<PlacedTensor> tensors_;
};

}  // namespace tessera
