#include "checkpoint/weight_index.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "checkpoint/name_list.h"
#include "kernels/core/error.h"

namespace tessera {

namespace {

using Json = nlohmann::json;

constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxDepth = 32;
constexpr const char* kMap = "weight_map";

bool is_plain_file(const std::string& name) {
  return name.size() <= 255 && name.ends_with(".safetensors") && !name.starts_with(".") &&
         name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

// Takes the events of the JSON parser. Every false ends the parsing with `reason`.
class IndexEvents : public nlohmann::json_sax<Json> {
 public:
  WeightMap files;
  bool has_map = false;
  std::string reason;

  bool null() override { return other(); }
  bool boolean(bool) override { return other(); }
  bool number_integer(int64_t) override { return other(); }
  bool number_unsigned(uint64_t) override { return other(); }
  bool number_float(double, const std::string&) override { return other(); }
  bool binary(Json::binary_t&) override { return other(); }
  bool string(std::string& file) override {
    if (!in_map_) return other();
    if (!is_plain_file(file)) {
      return fail(concat("has tensor ", shown_name(key_), " in \"", shown_name(file),
                         "\", expected a file name ending in .safetensors, without a folder"));
    }
    if (files.size() == kMaxTensors) return fail("has too many tensors");
    return files.emplace(key_, file).second ||
           fail(concat("has tensor ", shown_name(key_), " twice"));
  }
  bool key(std::string& name) override {
    key_ = name;
    return true;
  }
  bool start_object(size_t) override {
    if (in_map_) return other();
    if (++depth_ > kMaxDepth) return fail("is nested too deeply");
    if (depth_ != 2 || key_ != kMap) return true;
    in_map_ = true;
    return !std::exchange(has_map, true) || fail("has two weight_maps");
  }
  bool end_object() override {
    in_map_ = false;
    --depth_;
    return true;
  }
  bool start_array(size_t) override {
    if (depth_ == 0 || in_map_ || (depth_ == 1 && key_ == kMap)) return other();
    return ++depth_ <= kMaxDepth || fail("is nested too deeply");
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    return fail(concat("has no valid JSON at byte ", position));
  }

 private:
  // A value that is no text.
  bool other() {
    if (in_map_) return fail(concat("has no file name for tensor ", shown_name(key_)));
    if (depth_ == 1 && key_ == kMap) return fail("has a weight_map that is no object");
    return depth_ > 0 || fail("does not begin with {");
  }
  bool fail(const std::string& what) {
    if (reason.empty()) reason = what;
    return false;
  }

  std::string key_;
  size_t depth_ = 0;
  bool in_map_ = false;
};

}  // namespace

WeightMap parse_weight_index(std::string_view text, const std::string& name) {
  IndexEvents events;
  if (!Json::sax_parse(text, &events)) {
    throw Error(ExitCode::kBadData, concat(name, " ", events.reason));
  }
  if (!events.has_map) throw Error(ExitCode::kBadData, concat(name, " has no weight_map"));
  return std::move(events.files);
}

std::string weight_index_text(const WeightMap& files, int64_t total_size) {
  const Json json{{"metadata", {{"total_size", total_size}}}, {"weight_map", files}};
  return json.dump(2) + "\n";
}

}  // namespace tessera
