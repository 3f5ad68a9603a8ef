#include "checkpoint/reader.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "checkpoint/box.h"
#include "checkpoint/crc32c.h"
#include "checkpoint/digest.h"
#include "checkpoint/layout.h"
#include "checkpoint/manifest.h"
#include "checkpoint/manifest.pb.h"
#include "checkpoint/marker.h"
#include "checkpoint/wire_types.h"

namespace tessera {

namespace {

constexpr int64_t kMaxMarkerBytes = 4096;
constexpr int64_t kMaxBlobBytes = int64_t{1} << 30;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ExitCode::kBadData, message);
}

// The manifest that the marker speaks of.
wire::Manifest load_manifest(const Directory& directory) {
  const std::string marker_name = (directory.path() / kMarkerName).string();
  const std::string manifest_name = (directory.path() / kManifestName).string();
  if (!directory.contains(kMarkerName)) {
    refuse(concat(directory.path().string(), " is no checkpoint: it has no ", kMarkerName));
  }
  const Marker marker = decode_marker(directory.read(kMarkerName, kMaxMarkerBytes), marker_name);
  if (marker.format_major != kFormatMajor) {
    refuse(concat(directory.path().string(), " has checkpoint format ", marker.format_major,
                  ", this program reads ", kFormatMajor, ": use the version that wrote it"));
  }
  const std::string bytes = directory.read(kManifestName, kMaxManifestBytes);
  const std::string hash = hash128(bytes_of(bytes));
  if (std::ssize(bytes) != marker.manifest_bytes || hash != marker.manifest_hash) {
    refuse(concat(manifest_name, " has ", bytes.size(), " bytes and XXH3-128 ", hash, ", expected ",
                  marker.manifest_bytes, " and ", marker.manifest_hash));
  }
  wire::Manifest manifest = parse_manifest(bytes, manifest_name);
  if (manifest.step() != marker.step || manifest.epoch() != marker.epoch) {
    refuse(concat(manifest_name, " is of step ", manifest.step(), " epoch ", manifest.epoch(),
                  ", expected ", marker.step, " and ", marker.epoch));
  }
  return manifest;
}

}  // namespace

struct CheckpointReader::State {
  explicit State(const std::filesystem::path& path)
      : directory(path), manifest(load_manifest(directory)), facts(facts_of(manifest)) {}

  /// Its number, or -1.
  int find(TensorKind kind, const std::string& name) const;
  const wire::Blob* find_blob(const std::string& name) const;
  void locate(TensorKind kind, const NamedTensor& target, std::vector<StoredRun>& runs) const;
  void check_digest(TensorKind kind, const NamedTensor& target) const;

  Directory directory;
  wire::Manifest manifest;
  CheckpointFacts facts;
  std::vector<TensorFacts> tensors;
  int64_t bytes = 0;
};

int CheckpointReader::State::find(TensorKind kind, const std::string& name) const {
  const auto key = std::pair(kind, std::string_view(name));
  const auto at = std::lower_bound(
      tensors.begin(), tensors.end(), key, [](const TensorFacts& facts_of_one, const auto& wanted) {
        return std::pair(facts_of_one.kind, std::string_view(facts_of_one.name)) < wanted;
      });
  if (at == tensors.end() || at->kind != kind || at->name != name) return -1;
  return static_cast<int>(at - tensors.begin());
}

const wire::Blob* CheckpointReader::State::find_blob(const std::string& name) const {
  const auto at = std::lower_bound(
      manifest.blobs().begin(), manifest.blobs().end(), name,
      [](const wire::Blob& blob, const std::string& wanted) { return blob.name() < wanted; });
  return at != manifest.blobs().end() && at->name() == name ? &*at : nullptr;
}

void CheckpointReader::State::locate(TensorKind kind, const NamedTensor& target,
                                     std::vector<StoredRun>& runs) const {
  const std::string who = concat(name_of(kind), " ", target.name);
  CHECK(target.data.shape() == target.box.extents, "checkpoint: ", who, " is ", target.data.shape(),
        ", expected the box's ", target.box.extents);
  const int number = find(kind, target.name);
  if (number < 0) refuse(concat(directory.path().string(), " holds no ", who));
  const wire::Tensor& tensor = manifest.tensors(number);
  if (shape_of(tensor) != target.whole || dtype_of(tensor) != target.data.dtype()) {
    refuse(concat(directory.path().string(), ": ", who, " is ", name_of(dtype_of(tensor)), " ",
                  shape_of(tensor), ", expected ", name_of(target.data.dtype()), " ",
                  target.whole));
  }
  if (target.data.elements() == 0) return;
  const int64_t size = size_of(target.data.dtype());
  auto* data = static_cast<std::byte*>(target.data.data());
  for (const wire::Slice& slice : tensor.slices()) {
    const Box held = box_of(slice);
    const std::optional<Box> both = intersect(held, target.box);
    if (!both) continue;
    for_each_stretch(*both, held, target.box, [&](const Stretch& stretch) {
      runs.push_back({.file = slice.file(),
                      .offset = slice.byte_offset() + stretch.in_first * size,
                      .bytes = stretch.length * size,
                      .to = data + stretch.in_second * size,
                      .tensor = number});
    });
  }
}

void CheckpointReader::State::check_digest(TensorKind kind, const NamedTensor& target) const {
  if (target.box != whole_box(target.whole)) return;
  const uint64_t expected = manifest.tensors(find(kind, target.name)).logical_digest();
  const uint64_t found = digest(target.data.dtype(), target.whole, target.box, 0,
                                {static_cast<const std::byte*>(target.data.data()),
                                 static_cast<size_t>(target.data.bytes())});
  if (found != expected) {
    refuse(concat(directory.path().string(), ": the digest of ", name_of(kind), " ", target.name,
                  " is ", found, ", expected ", expected));
  }
}

CheckpointReader::CheckpointReader(const std::filesystem::path& directory, FileChecks checks)
    : state_(std::make_unique<State>(directory)) {
  state_->bytes = std::ssize(state_->directory.read(kManifestName, kMaxManifestBytes));
  for (int file = 0; file < state_->manifest.files_size(); ++file) {
    state_->bytes +=
        checks == FileChecks::kAll ? open_file(file).size() : state_->manifest.files(file).size();
  }
  for (const wire::Tensor& tensor : state_->manifest.tensors()) {
    const Shape shape = shape_of(tensor);
    state_->tensors.push_back({.kind = kind_of(tensor),
                               .name = tensor.name(),
                               .dtype = dtype_of(tensor),
                               .shape = shape,
                               .digest = tensor.logical_digest(),
                               .bytes = shape.elements() * size_of(dtype_of(tensor)),
                               .slices = tensor.slices_size()});
  }
}

CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&& other) noexcept = default;
CheckpointReader& CheckpointReader::operator=(CheckpointReader&& other) noexcept = default;

const std::filesystem::path& CheckpointReader::directory() const {
  return state_->directory.path();
}

const CheckpointFacts& CheckpointReader::facts() const {
  return state_->facts;
}

const std::vector<TensorFacts>& CheckpointReader::tensors() const {
  return state_->tensors;
}

int64_t CheckpointReader::bytes() const {
  return state_->bytes;
}

const wire::Manifest& CheckpointReader::manifest() const {
  return state_->manifest;
}

BlockReader CheckpointReader::open_file(int file) const {
  const wire::File& entry = state_->manifest.files(file);
  return {state_->directory.open(entry.path()), identity_of(state_->manifest, entry),
          summary_of(entry)};
}

bool CheckpointReader::contains(TensorKind kind, const std::string& name) const {
  return state_->find(kind, name) >= 0;
}

void CheckpointReader::read(TensorKind kind, std::span<const NamedTensor> into) const {
  const TensorGroup group{kind, into};
  (void)read(std::span<const TensorGroup>(&group, 1));
}

std::vector<StoredRun> CheckpointReader::locate(std::span<const TensorGroup> into) const {
  std::vector<StoredRun> runs;
  for (const TensorGroup& group : into) {
    for (const NamedTensor& target : group.tensors) state_->locate(group.kind, target, runs);
  }
  std::stable_sort(runs.begin(), runs.end(), [](const StoredRun& a, const StoredRun& b) {
    return std::pair(a.file, a.offset) < std::pair(b.file, b.offset);
  });
  return runs;
}

int64_t CheckpointReader::read(std::span<const TensorGroup> into) const {
  for (const TensorGroup& group : into) {
    for (const NamedTensor& target : group.tensors) {
      CHECK(target.data.device().kind == DeviceKind::kCpu, "checkpoint: ", name_of(group.kind), " ",
            target.name, " is not in host memory");
    }
  }
  std::optional<BlockReader> file;
  int opened = -1;
  int64_t bytes = 0;
  for (const StoredRun& run : locate(into)) {
    if (opened != run.file) {
      if (file) bytes += file->bytes_read();
      file = open_file(run.file);
      opened = run.file;
    }
    file->read(run.offset, {run.to, static_cast<size_t>(run.bytes)},
               title_of(state_->manifest.tensors(run.tensor)));
  }
  for (const TensorGroup& group : into) {
    for (const NamedTensor& target : group.tensors) state_->check_digest(group.kind, target);
  }
  return bytes + (file ? file->bytes_read() : 0);
}

std::vector<std::string> CheckpointReader::blob_names() const {
  std::vector<std::string> names;
  for (const wire::Blob& blob : state_->manifest.blobs()) names.push_back(blob.name());
  return names;
}

bool CheckpointReader::contains_blob(const std::string& name) const {
  return state_->find_blob(name) != nullptr;
}

std::string CheckpointReader::read_blob(const std::string& name) const {
  const wire::Blob* blob = state_->find_blob(name);
  if (blob == nullptr) refuse(concat(directory().string(), " holds no blob ", name));
  if (blob->byte_length() > kMaxBlobBytes) {
    refuse(concat(directory().string(), ": blob ", name, " has ", blob->byte_length(),
                  " bytes, expected at most ", kMaxBlobBytes));
  }
  std::string content(static_cast<size_t>(blob->byte_length()), '\0');
  const std::string title = concat("blob ", name);
  open_file(blob->file())
      .read(blob->byte_offset(),
            std::as_writable_bytes(std::span<char>(content.data(), content.size())), title);
  if (crc32c(bytes_of(content)) != blob->crc32c()) {
    refuse(concat(directory().string(), ": the CRC32C of ", title, " is wrong"));
  }
  return content;
}

}  // namespace tessera
