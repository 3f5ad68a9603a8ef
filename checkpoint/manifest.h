#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tessera {

namespace wire {
class Manifest;
class Part;
}  // namespace wire

/// Manifests come from disks and from strangers. Nothing is allocated on their word: the message
/// is measured before it is parsed, and every number in it is checked before it is used.
constexpr int64_t kMaxManifestBytes = int64_t{256} << 20;
constexpr int kMaxTensors = 1'000'000;
constexpr int kMaxSlicesOfTensor = 65'536;
constexpr size_t kMaxNameBytes = 4096;

/// Parses MANIFEST.pb. Throws kBadData, beginning with `name`, unless it is one that this program
/// can read and whose tensors and blobs fill its files: every element of every tensor in exactly
/// one slice, every slice in its file, no two in the same place, no gap but alignment.
wire::Manifest parse_manifest(std::string_view bytes, const std::string& name);
/// Whether `bytes` are a manifest that is intact, but that only another program can read: of
/// another major version, or with features that this one does not know.
bool is_of_other_format(std::string_view bytes);

/// A part as it stands on disk: the message and the CRC-32C of it as 4 bytes, little-endian.
std::string encode_part(const wire::Part& part);
wire::Part parse_part(std::string_view bytes, const std::string& name);

}  // namespace tessera
