#pragma once

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/store.h"
#include "tests/support/random_tensor.h"

namespace tessera::support {

/// A new empty directory, removed at the end. In memory where that is possible: tests sync often,
/// and none of them cuts the power.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    const std::filesystem::path memory = "/dev/shm";
    const bool in_memory = access(memory.c_str(), W_OK) == 0;
    const auto place = in_memory ? memory : std::filesystem::temp_directory_path();
    std::string name = (place / "tessera-XXXXXX").string();
    CHECK(mkdtemp(name.data()) != nullptr, "no temporary directory at ", name);
    path_ = name;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Tensors of several shapes, dtypes and kinds, as one rank of `parts` holds them: the state of a
/// small training run at `step`, a pure function of it.
class SampleState {
 public:
  explicit SampleState(int64_t step, int part = 0, int parts = 1, int64_t rows = 37) : step_(step) {
    add(TensorKind::kParameter, "embedding", DType::kBF16, {rows, 24}, 0, part, parts);
    add(TensorKind::kParameter, "experts", DType::kBF16, {8, 6, 10}, 1, part, parts);
    add(TensorKind::kParameter, "head", DType::kBF16, {24, rows}, 1, part, parts);
    add(TensorKind::kParameter, "norm", DType::kBF16, {5}, 0, part, parts);
    add(TensorKind::kMaster, "embedding", DType::kF32, {rows, 24}, 0, part, parts);
    add(TensorKind::kExpAvg, "embedding", DType::kF32, {rows, 24}, 0, part, parts);
    add(TensorKind::kExpAvgSq, "embedding", DType::kF32, {rows, 24}, 0, part, parts);
    add(TensorKind::kBuffer, "counts", DType::kI64, {2, 3, 2, 9}, 3, part, parts);
    add(TensorKind::kBuffer, "masks", DType::kU8, {3, 3}, 0, part, parts);
    add(TensorKind::kBuffer, "tokens", DType::kI32, {7, 3}, 0, part, parts);
    add(TensorKind::kBuffer, "halves", DType::kU16, {7}, 0, part, parts);
  }

  /// The groups, which point into this object.
  std::vector<TensorGroup> groups() const {
    std::vector<TensorGroup> all;
    for (const auto& [kind, tensors] : groups_) all.push_back({kind, tensors});
    return all;
  }

  CheckpointContents contents() const {
    CheckpointContents contents;
    contents.step = step_;
    contents.consumed_tokens = step_ * 4096;
    contents.consumed_samples = step_ * 8;
    contents.mesh = {{"data", 1}, {"expert", 1}, {"sequence", 1}, {"tensor", 1}};
    contents.determinism_flags = {"deterministic"};
    contents.groups = groups();
    contents.blobs = {{"cursor", concat("position ", step_)}, {"empty", ""}};
    contents.resolved_config = concat("steps: ", step_, "\n");
    return contents;
  }

  void fill(int value) {
    for (const auto& [kind, tensors] : groups_) {
      for (const NamedTensor& tensor : tensors) {
        if (tensor.data.bytes() == 0) continue;
        std::memset(tensor.data.data(), value, static_cast<size_t>(tensor.data.bytes()));
      }
    }
  }

  friend bool operator==(const SampleState& a, const SampleState& b) {
    for (size_t i = 0; i < a.tensors_.size(); ++i) {
      const TensorView x = a.tensors_[i].view();
      const TensorView y = b.tensors_[i].view();
      if (x.shape() != y.shape() || x.dtype() != y.dtype()) return false;
      if (x.bytes() > 0 && std::memcmp(x.data(), y.data(), static_cast<size_t>(x.bytes())) != 0) {
        return false;
      }
    }
    return true;
  }

 private:
  void add(TensorKind kind, const std::string& name, DType dtype, Shape whole, int axis, int part,
           int parts) {
    const Shard shard = Shard::split(whole, axis, part, parts);
    const auto seed = static_cast<uint64_t>(step_ * 1000 + std::ssize(tensors_));
    const Tensor all = random_tensor(dtype, whole, seed, 100);
    tensors_.emplace_back(dtype, shard.local());
    const TensorView mine = tensors_.back().view();
    if (mine.bytes() == 0) return keep(kind, {name, shard, mine});
    int64_t outer = 1;
    for (int a = 0; a < axis; ++a) outer *= whole[a];
    const int64_t inner = whole.elements() / outer / whole[axis] * size_of(dtype);
    for (int64_t row = 0; row < outer; ++row) {
      std::memcpy(static_cast<std::byte*>(mine.data()) + row * shard.length * inner,
                  static_cast<const std::byte*>(all.view().data()) +
                      (row * whole[axis] + shard.begin) * inner,
                  static_cast<size_t>(shard.length * inner));
    }
    keep(kind, {name, shard, mine});
  }

  void keep(TensorKind kind, const NamedTensor& tensor) {
    if (groups_.empty() || groups_.back().first != kind) groups_.push_back({kind, {}});
    groups_.back().second.push_back(tensor);
  }

  int64_t step_;
  std::vector<Tensor> tensors_;
  std::vector<std::pair<TensorKind, std::vector<NamedTensor>>> groups_;
};

/// Options for tests: space is no concern.
inline StoreOptions quick_options() {
  StoreOptions options;
  options.reserve_bytes = 0;
  return options;
}

}  // namespace tessera::support
