#pragma once

#include <cstdint>
#include <limits>
#include <string_view>

namespace google::protobuf {
class Descriptor;
}

namespace tessera {

/// An upper bound on the memory, in bytes, that parsing `bytes` as a message of type `type` takes,
/// or -1 when they are not well-formed. Stops, with what it has counted, when that is more than
/// `enough`. Repeated messages of 2 bytes on disk take 100 in memory,
/// so a hostile file within the size limit could fill a machine. Allocates nothing.
/// `type` must not contain itself.
int64_t parsed_size_bound(std::string_view bytes, const google::protobuf::Descriptor& type,
                          int64_t enough = std::numeric_limits<int64_t>::max());

}  // namespace tessera
