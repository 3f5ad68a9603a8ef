#include "checkpoint/manifest.h"

#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <array>
#include <set>
#include <utility>
#include <vector>

#include "checkpoint/crc32c.h"
#include "checkpoint/layout.h"
#include "checkpoint/manifest.pb.h"
#include "checkpoint/wire_size.h"
#include "checkpoint/wire_types.h"

namespace tessera {

namespace {

constexpr int64_t kMaxParsedBytes = int64_t{384} << 20;
constexpr int kMaxFiles = 1'000'000;
constexpr int kMaxBlobs = 100'000;
constexpr int64_t kMaxFileBytes = int64_t{1} << 60;

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) throw Error(ExitCode::kBadData, concat(parts...));
}

// A message that carries no more than it may, or kBadData.
template <class Message>
Message parse(std::string_view bytes, const std::string& name) {
  const auto size = static_cast<int64_t>(bytes.size());
  require(size <= kMaxManifestBytes, name, " has ", size, " bytes, expected at most ",
          kMaxManifestBytes);
  const int64_t bound = parsed_size_bound(bytes, *Message::descriptor(), kMaxParsedBytes);
  require(bound >= 0, name, " is damaged: it is no well-formed message");
  require(bound + size <= kMaxParsedBytes, name, " would take at least ", bound,
          " bytes of memory, expected at most ", kMaxParsedBytes);
  const google::protobuf::LogSilencer quiet;  // what is wrong is said in our own words
  Message message;
  require(message.ParseFromArray(bytes.data(), static_cast<int>(size)), name,
          " is damaged: it is no ", Message::descriptor()->name(), " message");
  return message;
}

// Why this program cannot read the manifest though it is intact, or nothing.
std::optional<std::string> unsupported(const wire::Manifest& manifest) {
  if (manifest.format_major() != kFormatMajor) {
    return concat("was written by ", manifest.writer_version().substr(0, 80), " in format ",
                  manifest.format_major(), ".", manifest.format_minor(), ", this program reads ",
                  kFormatMajor, ".x");
  }
  if (manifest.required_features_size() > 0) {
    return concat("was written by ", manifest.writer_version().substr(0, 80),
                  " and needs feature \"", manifest.required_features(0).substr(0, 80),
                  "\", which this program (format ", kFormatMajor, ".", kFormatMinor,
                  ") does not know");
  }
  return std::nullopt;
}

bool is_hash(const std::string& text) {
  return text.size() == 32 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// Where something lies in a file.
struct Segment {
  int64_t begin = 0;
  int64_t length = 0;
};
using Segments = std::vector<std::vector<Segment>>;  // by file

void add_segment(int file, int64_t begin, int64_t length, const wire::Manifest& manifest,
                 Segments& segments, const std::string& who) {
  require(file >= 0 && file < manifest.files_size(), who, " is in file ", file, " of ",
          manifest.files_size());
  const int64_t size = manifest.files(file).size();
  require(begin >= kHeaderBytes && begin % kSegmentAlignment == 0 && length >= 0 && begin <= size &&
              length <= size - begin,
          who, " lies at byte ", begin, " with ", length, " bytes, which is not in ",
          manifest.files(file).path(), " of ", size, " bytes, or not a multiple of ",
          kSegmentAlignment);
  segments[static_cast<size_t>(file)].push_back({begin, length});
}

void check_facts(const wire::Manifest& manifest, const std::string& name) {
  require(manifest.step() >= 0 && manifest.epoch() >= 1 && manifest.consumed_tokens() >= 0 &&
              manifest.consumed_samples() >= 0,
          name, ": step, epoch and counts are ", manifest.step(), ", ", manifest.epoch(), ", ",
          manifest.consumed_tokens(), " and ", manifest.consumed_samples(),
          ", expected none below 0 and an epoch from 1");
  require(is_hash(manifest.run_uuid()), name, ": run_uuid is not 32 hexadecimal digits");
  require(manifest.mesh_size() <= 16 && manifest.determinism_flags_size() <= 1024, name, ": ",
          manifest.mesh_size(), " mesh axes and ", manifest.determinism_flags_size(),
          " determinism flags, expected at most 16 and 1024");
  const auto check_text = [&](const char* field, const std::string& text) {
    require(text.size() <= kMaxNameBytes, name, ": ", field, " has ", text.size(),
            " bytes, expected at most ", kMaxNameBytes);
  };
  check_text("writer_version", manifest.writer_version());
  check_text("git_hash", manifest.git_hash());
  check_text("config_hash", manifest.config_hash());
  for (const std::string& flag : manifest.determinism_flags()) check_text("a flag", flag);
  for (const wire::MeshAxis& axis : manifest.mesh()) {
    require(axis.size() >= 1 && axis.name().size() <= kMaxNameBytes, name, ": mesh axis ",
            axis.name().substr(0, 80), " has size ", axis.size());
  }
}

void check_files(const wire::Manifest& manifest, const std::string& name) {
  require(manifest.files_size() <= kMaxFiles, name, ": ", manifest.files_size(), " files");
  std::set<std::string_view> paths;
  const std::string folder = std::string(kDataName) + "/";
  for (const wire::File& file : manifest.files()) {
    const std::string& path = file.path();
    require(path.starts_with(folder) && path.size() > folder.size() && path.size() <= 255 &&
                path.find('/', folder.size()) == std::string::npos && path != folder + ".." &&
                path != folder + "." && path.find('\0') == std::string::npos,
            name, ": a file is called \"", path.substr(0, 80), "\", expected d/<name>");
    require(paths.insert(path).second, name, ": ", path, " is listed twice");
    require(file.size() >= kHeaderBytes && file.size() <= kMaxFileBytes &&
                file.size() % kSegmentAlignment == 0,
            name, ": ", path, " has ", file.size(), " bytes, expected a multiple of ",
            kSegmentAlignment);
    const int64_t blocks = (file.size() - kHeaderBytes + kBlockBytes - 1) / kBlockBytes;
    require(file.block_size() == kBlockBytes && file.block_crc32c_size() == blocks, name, ": ",
            path, " has ", file.block_crc32c_size(), " blocks of ", file.block_size(),
            " bytes, expected ", blocks, " of ", kBlockBytes);
    require(is_hash(file.xxh3_128()), name, ": ", path, " has no hash of 32 hexadecimal digits");
  }
}

// The shape, after checking that no product of its extents overflows.
Shape check_shape(const wire::Tensor& tensor, const std::string& who) {
  require(tensor.global_shape_size() >= 1 && tensor.global_shape_size() <= Shape::kMaxRank, who,
          " has ", tensor.global_shape_size(), " axes, expected 1 to ", Shape::kMaxRank);
  int64_t points = size_of(dtype_of(tensor));
  for (const int64_t extent : tensor.global_shape()) {
    // One more than the extent, as covers_exactly numbers the corners of boxes.
    require(extent >= 1 && extent < kMaxFileBytes &&
                !__builtin_mul_overflow(points, extent + 1, &points),
            who, " has an extent of ", extent, ", or too many elements");
  }
  return shape_of(tensor);
}

Box check_slice(const wire::Slice& slice, const Shape& shape, const std::string& who) {
  require(slice.offset_size() == shape.rank() && slice.extent_size() == shape.rank(), who,
          " has a slice of ", slice.offset_size(), " and ", slice.extent_size(), " axes, expected ",
          shape.rank());
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const int64_t offset = slice.offset(axis);
    const int64_t extent = slice.extent(axis);
    require(offset >= 0 && offset < shape[axis] && extent >= 1 && extent <= shape[axis] - offset,
            who, " has a slice of ", extent, " from ", offset, " on axis ", axis, ", expected it ",
            "within ", shape[axis]);
  }
  return box_of(slice);
}

void check_tensors(const wire::Manifest& manifest, const std::string& name, Segments& segments) {
  require(manifest.tensors_size() <= kMaxTensors, name, ": ", manifest.tensors_size(),
          " tensors, expected at most ", kMaxTensors);
  const wire::Tensor* before = nullptr;
  std::vector<Box> boxes;
  for (const wire::Tensor& tensor : manifest.tensors()) {
    require(!tensor.name().empty() && tensor.name().size() <= kMaxNameBytes, name,
            ": a tensor's name has ", tensor.name().size(), " bytes, expected 1 to ",
            kMaxNameBytes);
    require(has_known_type(tensor), name, ": tensor ", tensor.name(), " has kind ",
            static_cast<int>(tensor.kind()), " and dtype ", static_cast<int>(tensor.dtype()),
            ", which this program does not know");
    const std::string who = concat(name, ": ", title_of(tensor));
    require(before == nullptr || std::pair(before->kind(), std::string_view(before->name())) <
                                     std::pair(tensor.kind(), std::string_view(tensor.name())),
            who, " is listed twice or out of order");
    before = &tensor;
    const Shape shape = check_shape(tensor, who);
    require(tensor.slices_size() >= 1 && tensor.slices_size() <= kMaxSlicesOfTensor, who, " has ",
            tensor.slices_size(), " slices, expected 1 to ", kMaxSlicesOfTensor);
    boxes.clear();
    for (const wire::Slice& slice : tensor.slices()) {
      boxes.push_back(check_slice(slice, shape, who));
      const int64_t bytes = boxes.back().extents.elements() * size_of(dtype_of(tensor));
      require(slice.byte_length() == bytes, who, " has a slice of ", slice.byte_length(),
              " bytes, expected ", bytes);
      add_segment(slice.file(), slice.byte_offset(), bytes, manifest, segments, who);
    }
    require(covers_exactly(boxes, whole_box(shape)), who, " of shape ", shape,
            " has elements in no slice or in several");
  }
}

void check_blobs(const wire::Manifest& manifest, const std::string& name, Segments& segments) {
  require(manifest.blobs_size() <= kMaxBlobs, name, ": ", manifest.blobs_size(), " blobs");
  const std::string* before = nullptr;
  for (const wire::Blob& blob : manifest.blobs()) {
    require(!blob.name().empty() && blob.name().size() <= kMaxNameBytes, name,
            ": a blob's name has ", blob.name().size(), " bytes");
    const std::string who = concat(name, ": blob ", blob.name());
    require(before == nullptr || *before < blob.name(), who, " is listed twice or out of order");
    before = &blob.name();
    add_segment(blob.file(), blob.byte_offset(), blob.byte_length(), manifest, segments, who);
  }
}

// Nothing lies twice in a file, and nothing lies in it unseen.
void check_tiling(const wire::Manifest& manifest, const std::string& name, Segments& segments) {
  for (int i = 0; i < manifest.files_size(); ++i) {
    std::vector<Segment>& file = segments[static_cast<size_t>(i)];
    std::sort(file.begin(), file.end(), [](const Segment& a, const Segment& b) {
      return std::pair(a.begin, a.length) < std::pair(b.begin, b.length);
    });
    int64_t expected = kHeaderBytes;
    for (const Segment& segment : file) {
      require(segment.begin == expected, name, ": ", manifest.files(i).path(), " has a segment at ",
              segment.begin, ", expected it at ", expected);
      expected = aligned_segment(segment.begin + segment.length);
    }
    require(expected == manifest.files(i).size(), name, ": the segments of ",
            manifest.files(i).path(), " end at ", expected, ", expected ",
            manifest.files(i).size());
  }
}

}  // namespace

bool is_of_other_format(std::string_view bytes) {
  try {
    return unsupported(parse<wire::Manifest>(bytes, "")).has_value();
  } catch (const Error&) {
    return false;
  }
}

wire::Manifest parse_manifest(std::string_view bytes, const std::string& name) {
  wire::Manifest manifest = parse<wire::Manifest>(bytes, name);
  if (const std::optional<std::string> reason = unsupported(manifest)) {
    throw Error(ExitCode::kBadData, concat(name, " ", *reason));
  }
  Segments segments(static_cast<size_t>(manifest.files_size()));
  check_facts(manifest, name);
  check_files(manifest, name);
  check_tensors(manifest, name, segments);
  check_blobs(manifest, name, segments);
  check_tiling(manifest, name, segments);
  return manifest;
}

std::string encode_part(const wire::Part& part) {
  std::string bytes = part.SerializeAsString();
  const uint32_t crc = crc32c(bytes_of(bytes));
  for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>((crc >> shift) & 0xFF);
  return bytes;
}

wire::Part parse_part(std::string_view bytes, const std::string& name) {
  require(bytes.size() >= 4, name, " is cut off");
  const std::string_view body = bytes.substr(0, bytes.size() - 4);
  uint32_t crc = 0;
  for (size_t i = 0; i < 4; ++i) {
    crc |= static_cast<uint32_t>(static_cast<uint8_t>(bytes[body.size() + i])) << (8 * i);
  }
  require(crc == crc32c(bytes_of(body)), name, " is damaged: its CRC32C is ",
          crc32c(bytes_of(body)), ", expected ", crc);
  return parse<wire::Part>(body, name);
}

}  // namespace tessera
