#include "checkpoint/verify.h"

#include <algorithm>
#include <string>
#include <vector>

#include "checkpoint/box.h"
#include "checkpoint/crc32c.h"
#include "checkpoint/digest.h"
#include "checkpoint/file_hash.h"
#include "checkpoint/manifest.pb.h"
#include "checkpoint/wire_types.h"

namespace tessera {

namespace {

// A slice or a blob, where it lies in its file.
struct Segment {
  int64_t begin = 0;
  int64_t end = 0;
  int tensor = -1;  // or
  int blob = -1;
  const wire::Slice* slice = nullptr;
};

// Sums that grow while files are read, in any order.
struct Sums {
  std::vector<uint64_t> digests;    // by tensor
  std::vector<uint32_t> blob_crcs;  // by blob
};

std::vector<Segment> segments_of(const wire::Manifest& manifest, int file) {
  std::vector<Segment> segments;
  for (int tensor = 0; tensor < manifest.tensors_size(); ++tensor) {
    for (const wire::Slice& slice : manifest.tensors(tensor).slices()) {
      if (slice.file() != file) continue;
      segments.push_back({.begin = slice.byte_offset(),
                          .end = slice.byte_offset() + slice.byte_length(),
                          .tensor = tensor,
                          .slice = &slice});
    }
  }
  for (int blob = 0; blob < manifest.blobs_size(); ++blob) {
    const wire::Blob& entry = manifest.blobs(blob);
    if (entry.file() != file) continue;
    segments.push_back({.begin = entry.byte_offset(),
                        .end = entry.byte_offset() + entry.byte_length(),
                        .blob = blob});
  }
  std::sort(segments.begin(), segments.end(),
            [](const Segment& a, const Segment& b) { return a.begin < b.begin; });
  return segments;
}

std::string describe(const wire::Manifest& manifest, const Segment& segment) {
  return segment.tensor >= 0 ? title_of(manifest.tensors(segment.tensor))
                             : "blob " + manifest.blobs(segment.blob).name();
}

// Those that share a byte with [begin, end).
std::span<const Segment> within(const std::vector<Segment>& segments, int64_t begin, int64_t end) {
  const auto first = std::partition_point(segments.begin(), segments.end(),
                                          [=](const Segment& s) { return s.end <= begin; });
  const auto last =
      std::partition_point(first, segments.end(), [=](const Segment& s) { return s.begin < end; });
  return {first, last};
}

std::string describe(const wire::Manifest& manifest, std::span<const Segment> segments) {
  if (segments.empty()) return "padding";
  std::string title = describe(manifest, segments.front());
  if (segments.size() > 1) title += " to " + describe(manifest, segments.back());
  return title;
}

void add(const wire::Manifest& manifest, const Segment& segment, int64_t block_begin,
         std::span<const std::byte> block, Sums& sums) {
  const int64_t begin = std::max(segment.begin, block_begin);
  const int64_t end = std::min(segment.end, block_begin + std::ssize(block));
  const auto data =
      block.subspan(static_cast<size_t>(begin - block_begin), static_cast<size_t>(end - begin));
  if (segment.blob >= 0) {
    uint32_t& crc = sums.blob_crcs[static_cast<size_t>(segment.blob)];
    crc = crc32c(data, crc);
    return;
  }
  const wire::Tensor& tensor = manifest.tensors(segment.tensor);
  const DType dtype = dtype_of(tensor);
  sums.digests[static_cast<size_t>(segment.tensor)] +=
      digest(dtype, shape_of(tensor), box_of(*segment.slice),
             (begin - segment.begin) / size_of(dtype), data);
}

void check_sums(const CheckpointReader& reader, const Sums& sums) {
  const wire::Manifest& manifest = reader.manifest();
  for (int i = 0; i < manifest.tensors_size(); ++i) {
    const uint64_t found = sums.digests[static_cast<size_t>(i)];
    if (found != manifest.tensors(i).logical_digest()) {
      throw Error(ExitCode::kBadData, concat(reader.directory().string(), ": the digest of ",
                                             title_of(manifest.tensors(i)), " is ", found,
                                             ", expected ", manifest.tensors(i).logical_digest()));
    }
  }
  for (int i = 0; i < manifest.blobs_size(); ++i) {
    if (sums.blob_crcs[static_cast<size_t>(i)] != manifest.blobs(i).crc32c()) {
      throw Error(ExitCode::kBadData, concat(reader.directory().string(), ": the CRC32C of blob ",
                                             manifest.blobs(i).name(), " is wrong"));
    }
  }
}

}  // namespace

void verify_checkpoint(const CheckpointReader& reader,
                       const std::function<void(const VerifyProgress&)>& progress) {
  const wire::Manifest& manifest = reader.manifest();
  Sums sums{.digests = std::vector<uint64_t>(static_cast<size_t>(manifest.tensors_size())),
            .blob_crcs = std::vector<uint32_t>(static_cast<size_t>(manifest.blobs_size()))};
  VerifyProgress done;
  for (const wire::File& file : manifest.files()) done.bytes_total += file.size();
  for (int i = 0; i < manifest.files_size(); ++i) {
    const std::vector<Segment> segments = segments_of(manifest, i);
    BlockReader file = reader.open_file(i);
    Hash128 hash;
    hash.update(bytes_of(file.header_bytes()));
    done.bytes_done += kHeaderBytes;
    for (int64_t number = 0; number < file.blocks(); ++number) {
      const int64_t begin = file.block_offset(number);
      const auto touched = within(segments, begin, std::min(begin + kBlockBytes, file.size()));
      const std::span<const std::byte> block = file.block(number, describe(manifest, touched));
      hash.update(block);
      for (const Segment& segment : touched) add(manifest, segment, begin, block, sums);
      done.bytes_done += std::ssize(block);
      if (progress) progress(done);
    }
    file.check_hash(hash.hex());
  }
  check_sums(reader, sums);
}

}  // namespace tessera
