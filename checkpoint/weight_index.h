#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace tessera {

/// model.safetensors.index.json of a model in several files:
///   {"metadata": {"total_size": BYTES}, "weight_map": {TENSOR: FILE, ...}}
/// Files lie beside the index.

constexpr const char* kWeightIndexName = "model.safetensors.index.json";
constexpr int64_t kMaxWeightIndex = 100'000'000;  // bytes, as much as a header may have

/// From the name of a tensor to that of its file.
using WeightMap = std::map<std::string, std::string>;

/// Throws kBadData, beginning with `name`: no weight_map or two, a tensor twice, a file that is
/// not a plain name ending in .safetensors, more than a million tensors, no valid JSON. What is
/// beside the weight_map is passed over. No document tree is built.
WeightMap parse_weight_index(std::string_view text, const std::string& name);

/// The text of an index. `total_size` is the bytes of all tensors.
std::string weight_index_text(const WeightMap& files, int64_t total_size);

}  // namespace tessera
