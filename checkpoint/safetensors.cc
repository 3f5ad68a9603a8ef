#include "checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

namespace tessera {

namespace {

using Json = nlohmann::json;

constexpr int64_t kLengthBytes = 8;
constexpr size_t kMaxEntries = 1'000'000;
constexpr const char* kMetadataKey = "__metadata__";

struct DTypeName {
  DType dtype;
  const char* name;
};
// Of equal dtypes the first is the one that is written.
constexpr std::array<DTypeName, 7> kDTypeNames{{{DType::kF32, "F32"},
                                                {DType::kBF16, "BF16"},
                                                {DType::kI32, "I32"},
                                                {DType::kI64, "I64"},
                                                {DType::kU16, "U16"},
                                                {DType::kU8, "U8"},
                                                {DType::kU16, "F16"}}};

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ExitCode::kBadData, message);
}

std::string short_form(const std::string& text) {
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

// One tensor's description as it stands in the header.
struct RawEntry {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<int64_t> offsets;
  int fields = 0;
};

// Takes the events of the JSON parser and keeps only what a header may have, so that no document
// tree is built from a stranger's 100 MB. Every false ends the parsing with `reason`.
class HeaderEvents : public nlohmann::json_sax<Json> {
 public:
  std::vector<RawEntry> entries;
  std::map<std::string, std::string> metadata;
  std::string reason;

  bool null() override { return fail("a null"); }
  bool boolean(bool) override { return fail("a boolean"); }
  bool number_float(double, const std::string&) override { return fail("a fraction"); }
  bool binary(Json::binary_t&) override { return fail("binary data"); }
  bool number_integer(int64_t) override { return fail("a negative number"); }
  bool number_unsigned(uint64_t value) override {
    if (place_ != Place::kList) return fail("a number where none belongs");
    if (value > uint64_t{1} << 60) return fail("a number above 2^60");
    std::vector<int64_t>& list = field_ == "shape" ? entries.back().shape : entries.back().offsets;
    if (list.size() == 64) return fail("a list of more than 64 numbers");
    list.push_back(static_cast<int64_t>(value));
    return true;
  }
  bool string(std::string& value) override {
    if (place_ == Place::kMetadata)
      return metadata.emplace(field_, value).second || fail("a metadata key twice");
    if (place_ != Place::kEntry || field_ != "dtype") return fail("a string where none belongs");
    entries.back().dtype = value;
    return true;
  }
  bool start_object(size_t) override {
    switch (place_) {
      case Place::kStart:
        place_ = Place::kTop;
        return true;
      case Place::kTop:
        if (field_ == kMetadataKey) {
          place_ = Place::kMetadata;
          return !std::exchange(has_metadata_, true) || fail("metadata twice");
        }
        if (entries.size() == kMaxEntries) return fail("too many tensors");
        place_ = Place::kEntry;
        entries.emplace_back().name = field_;
        return true;
      default:
        return fail("an object where none belongs");
    }
  }
  bool key(std::string& value) override {
    field_ = value;
    if (place_ != Place::kEntry) return true;
    const int bit = value == "dtype" ? 1 : value == "shape" ? 2 : value == "data_offsets" ? 4 : 0;
    if (bit == 0) return fail("an unknown key \"" + short_form(value) + "\"");
    if ((entries.back().fields & bit) != 0) return fail("key \"" + value + "\" twice");
    entries.back().fields |= bit;
    return true;
  }
  bool end_object() override {
    if (place_ == Place::kEntry && entries.back().fields != 7)
      return fail("a tensor that lacks a key");
    place_ = place_ == Place::kTop ? Place::kEnd : Place::kTop;
    return true;
  }
  bool start_array(size_t) override {
    if (place_ != Place::kEntry || field_ == "dtype") return fail("a list where none belongs");
    place_ = Place::kList;
    return true;
  }
  bool end_array() override {
    place_ = Place::kEntry;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    return fail(concat("no valid JSON at byte ", position));
  }

 private:
  enum class Place : uint8_t { kStart, kTop, kMetadata, kEntry, kList, kEnd };

  bool fail(const std::string& what) {
    if (reason.empty()) reason = what;
    return false;
  }

  Place place_ = Place::kStart;
  std::string field_;
  bool has_metadata_ = false;
};

Shape shape_of(const std::vector<int64_t>& extents, const std::string& who) {
  if (extents.size() > Shape::kMaxRank) {
    refuse(concat(who, " has ", extents.size(), " axes, expected at most ", Shape::kMaxRank));
  }
  static constexpr std::array<Shape, Shape::kMaxRank + 1> kOfRank{
      Shape{1}, Shape{1}, Shape{1, 1}, Shape{1, 1, 1}, Shape{1, 1, 1, 1}};
  Shape shape = kOfRank[extents.size()];
  for (size_t axis = 0; axis < extents.size(); ++axis) {
    shape = shape.with(static_cast<int>(axis), extents[axis]);
  }
  return shape;
}

SafetensorsEntry checked(const RawEntry& raw, const std::string& name) {
  const std::string who = concat(name, ": tensor ", short_form(raw.name));
  const auto* known = std::find_if(kDTypeNames.begin(), kDTypeNames.end(),
                                   [&](const DTypeName& one) { return raw.dtype == one.name; });
  if (known == kDTypeNames.end()) {
    refuse(concat(who, " has dtype ", short_form(raw.dtype),
                  ", expected F32, BF16, F16, I32, I64, U16 or U8"));
  }
  SafetensorsEntry entry{.name = raw.name,
                         .dtype = known->dtype,
                         .is_f16 = raw.dtype == "F16",
                         .shape = shape_of(raw.shape, who),
                         .begin = 0,
                         .end = 0};
  int64_t bytes = size_of(entry.dtype);
  for (const int64_t extent : raw.shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) refuse(concat(who, " is too large"));
  }
  if (raw.offsets.size() != 2 || raw.offsets[1] - raw.offsets[0] != bytes) {
    refuse(concat(who, " of shape ", entry.shape, " has no data_offsets ", bytes, " bytes apart"));
  }
  entry.begin = raw.offsets[0];
  entry.end = raw.offsets[1];
  return entry;
}

// The length and the header, padded so that the data begins at a multiple of 8.
std::string header_of(const std::vector<SafetensorsEntry>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  for (const SafetensorsEntry& tensor : tensors) {
    CHECK(!header.contains(tensor.name), "safetensors: the name ", tensor.name, " is taken");
    Json& entry = header[tensor.name];
    const auto* known = std::find_if(kDTypeNames.begin(), kDTypeNames.end(),
                                     [&](const auto& one) { return one.dtype == tensor.dtype; });
    entry["dtype"] = known->name;
    entry["shape"] = Json::array();
    for (int axis = 0; axis < tensor.shape.rank(); ++axis) {
      entry["shape"].push_back(tensor.shape[axis]);
    }
    entry["data_offsets"] = {tensor.begin, tensor.end};
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string length(kLengthBytes, '\0');
  for (size_t i = 0; i < length.size(); ++i) {
    length[i] = static_cast<char>((text.size() >> (8 * i)) & 0xFF);
  }
  return length + text;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view header, int64_t data_bytes,
                                           const std::string& name) {
  if (!header.starts_with("{")) refuse(concat(name, ": the header does not begin with {"));
  HeaderEvents events;
  if (!Json::sax_parse(header, &events)) {
    refuse(concat(name, ": the header has ", events.reason));
  }
  SafetensorsHeader result;
  result.metadata = std::move(events.metadata);
  for (const RawEntry& raw : events.entries) result.tensors.push_back(checked(raw, name));

  std::vector<SafetensorsEntry>& tensors = result.tensors;
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  int64_t expected = 0;
  for (const SafetensorsEntry& entry : tensors) {
    if (entry.begin != expected) {
      refuse(concat(name, ": tensor ", short_form(entry.name), " begins at byte ", entry.begin,
                    " of the data, expected ", expected));
    }
    expected = entry.end;
  }
  if (expected != data_bytes) {
    refuse(concat(name, " has ", data_bytes, " bytes of data, expected ", expected));
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i].name == tensors[i - 1].name) {
      refuse(concat(name, ": tensor ", short_form(tensors[i].name), " is there twice"));
    }
  }
  return result;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(File::open(path)) {
  const std::string& name = file_.name();
  const int64_t size = file_.size();
  if (size < kLengthBytes) refuse(concat(name, " has ", size, " bytes, expected a header"));
  std::array<std::byte, kLengthBytes> length_bytes{};
  file_.read_at(length_bytes, 0);
  uint64_t length = 0;
  for (size_t i = 0; i < length_bytes.size(); ++i) {
    length |= static_cast<uint64_t>(length_bytes[i]) << (8 * i);
  }
  const auto limit = static_cast<uint64_t>(std::min(kMaxSafetensorsHeader, size - kLengthBytes));
  if (length > limit) {
    refuse(concat(name, " has a header of ", length, " bytes, expected at most ", limit));
  }
  std::string header(length, '\0');
  file_.read_at(std::as_writable_bytes(std::span<char>(header.data(), header.size())),
                kLengthBytes);
  data_begin_ = kLengthBytes + static_cast<int64_t>(length);
  header_ = parse_safetensors_header(header, size - data_begin_, name);
}

bool SafetensorsFile::contains(const std::string& name) const {
  return std::binary_search(
      header_.tensors.begin(), header_.tensors.end(), SafetensorsEntry{.name = name, .shape = {}},
      [](const SafetensorsEntry& a, const SafetensorsEntry& b) { return a.name < b.name; });
}

const SafetensorsEntry& SafetensorsFile::find(const std::string& name) const {
  const auto at = std::lower_bound(
      header_.tensors.begin(), header_.tensors.end(), name,
      [](const SafetensorsEntry& entry, const std::string& wanted) { return entry.name < wanted; });
  if (at == header_.tensors.end() || at->name != name) {
    refuse(concat(file_.name(), " holds no tensor ", name));
  }
  return *at;
}

void SafetensorsFile::read(const std::string& name, const TensorView& into) const {
  const SafetensorsEntry& entry = find(name);
  if (entry.dtype != into.dtype() || entry.shape != into.shape()) {
    refuse(concat(file_.name(), ": tensor ", name, " is ", name_of(entry.dtype), " ", entry.shape,
                  ", expected ", name_of(into.dtype()), " ", into.shape()));
  }
  file_.read_at({static_cast<std::byte*>(into.data()), static_cast<size_t>(into.bytes())},
                data_begin_ + entry.begin);
}

void SafetensorsFile::read_bytes(const SafetensorsEntry& entry, int64_t first,
                                 std::span<std::byte> into) const {
  CHECK(first >= 0 && first + std::ssize(into) <= entry.end - entry.begin, "safetensors: bytes ",
        first, " to ", first + std::ssize(into), " are not within tensor ", entry.name, " of ",
        entry.end - entry.begin);
  file_.read_at(into, data_begin_ + entry.begin + first);
}

SafetensorsWriter::SafetensorsWriter(File file, std::vector<SafetensorsEntry> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : file_(std::move(file)), tensors_(std::move(tensors)) {
  // Wide dtypes first, so that every tensor is aligned to its own elements.
  std::sort(tensors_.begin(), tensors_.end(), [](const auto& a, const auto& b) {
    return std::pair(-size_of(a.dtype), std::string_view(a.name)) <
           std::pair(-size_of(b.dtype), std::string_view(b.name));
  });
  int64_t end = 0;
  for (SafetensorsEntry& tensor : tensors_) {
    tensor.begin = end;
    tensor.end = end += tensor.shape.elements() * size_of(tensor.dtype);
  }
  const std::string header = header_of(tensors_, metadata);
  file_.write_at(bytes_of(header), 0);
  data_begin_ = std::ssize(header);
}

void SafetensorsWriter::append(ConstTensorView data) {
  CHECK(next_ < tensors_.size(), "safetensors: ", file_.name(), " has all its tensors already");
  const SafetensorsEntry& entry = tensors_[next_];
  CHECK(data.dtype() == entry.dtype && data.shape() == entry.shape, "safetensors: ", entry.name,
        " is ", name_of(data.dtype()), " ", data.shape(), ", expected ", name_of(entry.dtype), " ",
        entry.shape);
  CHECK(data.device().kind == DeviceKind::kCpu, "safetensors: ", entry.name,
        " is not in host memory");
  file_.write_at({static_cast<const std::byte*>(data.data()), static_cast<size_t>(data.bytes())},
                 data_begin_ + entry.begin);
  ++next_;
}

void SafetensorsWriter::finish() {
  CHECK(next_ == tensors_.size(), "safetensors: ", file_.name(), " lacks tensor ",
        tensors_[next_].name);
  file_.sync();
  file_.close();
}

void write_safetensors(const std::filesystem::path& path,
                       std::span<const SafetensorsTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::map<std::string_view, ConstTensorView> values;
  std::vector<SafetensorsEntry> entries;
  for (const SafetensorsTensor& tensor : tensors) {
    values[tensor.name] = tensor.data;
    entries.push_back(
        {.name = tensor.name, .dtype = tensor.data.dtype(), .shape = tensor.data.shape()});
  }
  const Directory directory(path.has_parent_path() ? path.parent_path() : ".");
  const std::string name = path.filename();
  const std::string temporary = name + ".tmp";
  if (directory.contains(temporary)) directory.remove(temporary);
  SafetensorsWriter writer(directory.create(temporary), std::move(entries), metadata);
  for (const SafetensorsEntry& entry : writer.tensors()) writer.append(values.at(entry.name));
  writer.finish();
  directory.rename(temporary, name);
  directory.sync();
}

}  // namespace tessera
