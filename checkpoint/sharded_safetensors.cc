#include "checkpoint/sharded_safetensors.h"

#include <algorithm>
#include <set>

#include "checkpoint/name_list.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

// What a directory of strangers may cost before the first tensor is read.
constexpr size_t kMaxFiles = 1000;  // open at a time
constexpr size_t kMaxTensors = 1'000'000;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ExitCode::kBadData, message);
}

std::string read_index(const fs::path& path) {
  const File file = File::open(path);
  const int64_t size = file.size();
  if (size > kMaxWeightIndex) {
    refuse(concat(file.name(), " has ", size, " bytes, expected at most ", kMaxWeightIndex));
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.read_at(std::as_writable_bytes(std::span<char>(text.data(), text.size())), 0);
  return text;
}

std::vector<std::string> files_of(const WeightMap& index, const fs::path& path) {
  std::set<std::string> names;
  for (const auto& [tensor, file] : index) {
    names.insert(file);
    if (names.size() > kMaxFiles) {
      refuse(concat(path.string(), " names more than ", kMaxFiles, " files"));
    }
  }
  return {names.begin(), names.end()};
}

void check_all_there(const fs::path& directory, const std::vector<std::string>& names) {
  std::vector<std::string> missing;
  for (const std::string& name : names) {
    std::error_code ignored;
    if (!fs::exists(directory / name, ignored)) missing.push_back(name);
  }
  if (missing.empty()) return;
  refuse(concat(directory.string(), " lacks ", missing.size(), " of ", names.size(),
                " files that its index names: ", first_few(missing), "; download the model again"));
}

}  // namespace

std::vector<PlacedTensor> place_tensors(std::span<const ListedFile> files, const WeightMap& index,
                                        const std::string& name) {
  std::vector<PlacedTensor> placed;
  for (size_t file = 0; file < files.size(); ++file) {
    for (const SafetensorsEntry& entry : files[file].tensors) {
      const auto at = index.find(entry.name);
      const std::string who = concat(" has tensor ", shown_name(entry.name));
      if (at == index.end()) {
        refuse(concat(files[file].name, who, ", which ", name, " does not name"));
      }
      if (at->second != files[file].name) {
        refuse(
            concat(files[file].name, who, ", expected it in ", at->second, " as ", name, " says"));
      }
      placed.push_back({entry, file});
    }
  }
  std::sort(placed.begin(), placed.end(), [](const PlacedTensor& a, const PlacedTensor& b) {
    return a.entry.name < b.entry.name;
  });
  // Each tensor is in the file that the index says, so none is there twice.
  std::vector<std::string> missing;
  auto next = placed.begin();
  for (const auto& [tensor, file] : index) {
    if (next != placed.end() && next->entry.name == tensor) {
      ++next;
    } else {
      missing.push_back(concat(tensor, " (", file, ")"));
    }
  }
  if (!missing.empty()) {
    refuse(concat(name, " names tensors that are not in their files, ", missing.size(), ": ",
                  first_few(missing)));
  }
  return placed;
}

ShardedSafetensors::ShardedSafetensors(const fs::path& directory) {
  std::error_code ignored;
  if (!fs::exists(directory, ignored)) {
    throw Error(ExitCode::kUsage, concat(directory.string(), " does not exist"));
  }
  if (fs::exists(directory / kOneFileName, ignored)) {
    files_.emplace_back(directory / kOneFileName);
    for (const SafetensorsEntry& entry : files_[0].tensors()) tensors_.push_back({entry, 0});
  } else if (fs::exists(directory / kWeightIndexName, ignored)) {
    open_indexed(directory);
  } else {
    refuse(concat(directory.string(), " has neither ", kOneFileName, " nor ", kWeightIndexName,
                  ": give a directory of safetensors files; others, as .bin, must be converted"));
  }
}

void ShardedSafetensors::open_indexed(const fs::path& directory) {
  const fs::path path = directory / kWeightIndexName;
  const WeightMap index = parse_weight_index(read_index(path), path.string());
  const std::vector<std::string> names = files_of(index, path);
  check_all_there(directory, names);
  size_t tensors = 0;
  for (const std::string& name : names) {
    files_.emplace_back(directory / name);
    tensors += files_.back().tensors().size();
    if (tensors > kMaxTensors) {
      refuse(concat(directory.string(), " has more than ", kMaxTensors, " tensors"));
    }
  }
  std::vector<ListedFile> listed;
  for (size_t i = 0; i < names.size(); ++i) listed.push_back({names[i], files_[i].tensors()});
  tensors_ = place_tensors(listed, index, path.string());
}

const PlacedTensor& ShardedSafetensors::find(std::string_view name) const {
  const auto at = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                   [](const PlacedTensor& tensor, std::string_view wanted) {
                                     return tensor.entry.name < wanted;
                                   });
  if (at == tensors_.end() || at->entry.name != name) {
    refuse(concat("the model holds no tensor ", shown_name(std::string(name))));
  }
  return *at;
}

void ShardedSafetensors::read_bytes(const PlacedTensor& tensor, int64_t first,
                                    std::span<std::byte> into) const {
  files_[tensor.file].read_bytes(tensor.entry, first, into);
}

}  // namespace tessera
