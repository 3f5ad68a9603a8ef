#include "checkpoint/segments.h"

#include <algorithm>

#include "checkpoint/manifest.pb.h"
#include "checkpoint/wire_types.h"

namespace tessera {

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

namespace {

std::string describe_one(const wire::Manifest& manifest, const Segment& segment) {
  return segment.tensor >= 0 ? title_of(manifest.tensors(segment.tensor))
                             : "blob " + manifest.blobs(segment.blob).name();
}

}  // namespace

std::span<const Segment> within(const std::vector<Segment>& segments, int64_t begin, int64_t end) {
  const auto first = std::partition_point(segments.begin(), segments.end(),
                                          [=](const Segment& s) { return s.end <= begin; });
  const auto last =
      std::partition_point(first, segments.end(), [=](const Segment& s) { return s.begin < end; });
  return {first, last};
}

std::string describe(const wire::Manifest& manifest, std::span<const Segment> segments) {
  if (segments.empty()) return "padding";
  std::string title = describe_one(manifest, segments.front());
  if (segments.size() > 1) title += " to " + describe_one(manifest, segments.back());
  return title;
}

}  // namespace tessera
