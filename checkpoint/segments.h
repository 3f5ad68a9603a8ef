#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace tessera {

namespace wire {
class Manifest;
class Slice;
}  // namespace wire

/// A slice or a blob, where it lies in its file.
struct Segment {
  int64_t begin = 0;
  int64_t end = 0;
  int tensor = -1;  ///< or
  int blob = -1;
  const wire::Slice* slice = nullptr;
};

/// All of file number `file`, by offset.
std::vector<Segment> segments_of(const wire::Manifest& manifest, int file);
/// Those that share a byte with [begin, end).
std::span<const Segment> within(const std::vector<Segment>& segments, int64_t begin, int64_t end);
/// "parameter embedding to blob cursor", for people; "padding" of none.
std::string describe(const wire::Manifest& manifest, std::span<const Segment> segments);

}  // namespace tessera
