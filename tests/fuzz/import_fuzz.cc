#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/export/model_parameters.h"
#include "runtime/import/hugging_face_config.h"
#include "runtime/import/import_plan.h"
#include "tests/model/tiny_model.h"

// Feeds any text to everything that an import of a model of Hugging Face reads: config.json, the
// index, and the headers of two files. Each may also be the right one, so that the others are
// reached. It must accept or throw Error(kBadData); what it accepts must have every tensor of the
// model, in its shape and within its file.

namespace tessera {
namespace {

const std::string kFirst = "model-00001-of-00002.safetensors";
const std::string kSecond = "model-00002-of-00002.safetensors";

/// What a sound directory holds.
struct Sound {
  TrainConfig config = support::tiny_config();
  std::string json = hugging_face_config(config, DType::kF32);
  WeightMap index;
  std::array<std::string, 2> headers;
  std::array<int64_t, 2> bytes{};

  Sound() {
    int64_t number = 0;
    for (const Parameter& parameter : model_parameters(config.model(), DType::kF32)) {
      for (const HuggingFacePart& part :
           hugging_face_parts(config.model(), parameter.name, parameter.shard.whole)) {
        add(part, static_cast<size_t>(number++ % 2));
      }
    }
    for (std::string& header : headers) header = "{" + header.substr(1) + "}";
  }

 private:
  void add(const HuggingFacePart& part, size_t file) {
    const int64_t end = bytes[file] + part.shape.elements() * 4;
    headers[file] += concat(",\"", part.name, "\":{\"dtype\":\"F32\",\"shape\":", part.shape,
                            ",\"data_offsets\":[", bytes[file], ",", end, "]}");
    bytes[file] = end;
    index[part.name] = file == 0 ? kFirst : kSecond;
  }
};

/// The text up to the next 0 byte.
std::string next_text(std::string& left) {
  const size_t end = std::min(left.find('\0'), left.size());
  const std::string text = left.substr(0, end);
  left.erase(0, end + 1);
  return text;
}

void check(const ImportPlan& plan, const std::vector<PlacedTensor>& tensors) {
  for (const ImportedParameter& one : plan.parameters) {
    int64_t next = 0;
    for (const HuggingFacePart& part : one.parts) {
      const auto at = std::find_if(tensors.begin(), tensors.end(), [&](const PlacedTensor& tensor) {
        return tensor.entry.name == part.name;
      });
      if (at == tensors.end() || at->entry.shape != part.shape || part.first != next) {
        __builtin_trap();
      }
      next += part.shape.elements();
    }
    if (!one.parts.empty() && next != one.parameter.shard.whole.elements()) __builtin_trap();
  }
}

void import(uint8_t sound_ones, std::string left) {
  static const Sound sound;
  const auto is_sound = [&](int bit) { return (sound_ones >> bit & 1) != 0; };
  try {
    ModelConfig theirs;
    read_hugging_face_config(is_sound(0) ? sound.json : next_text(left), "config.json", theirs);
    const bool agree = model_disagreements(sound.config.model(), theirs, "config.json").empty();
    if (is_sound(0) && !agree) __builtin_trap();
    const WeightMap index =
        is_sound(1) ? sound.index : parse_weight_index(next_text(left), "index");
    std::array<SafetensorsHeader, 2> headers;
    for (size_t i = 0; i < headers.size(); ++i) {
      const std::string text =
          is_sound(2 + static_cast<int>(i)) ? sound.headers[i] : next_text(left);
      headers[i] = parse_safetensors_header(text, sound.bytes[i], "file");
    }
    const std::array<ListedFile, 2> files{ListedFile{kFirst, headers[0].tensors},
                                          ListedFile{kSecond, headers[1].tensors}};
    const std::vector<PlacedTensor> tensors = place_tensors(files, index, "index");
    // Not only when they agree: files may lie about what config.json says.
    check(plan_import(sound.config.model(), DType::kF32, tensors, "directory"), tensors);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadData) throw;
    if ((sound_ones & 15) == 15) __builtin_trap();
  }
}

}  // namespace
}  // namespace tessera

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  tessera::import(data[0], std::string(reinterpret_cast<const char*>(data) + 1, size - 1));
  return 0;
}
