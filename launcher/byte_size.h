#pragma once

#include <cstdint>
#include <string>

namespace tessera {

/// A number of bytes as people write it: a whole number with a unit, "5GB", "512MiB", "4096B".
/// B, KB, MB, GB and TB are powers of 1000, KiB, MiB, GiB and TiB of 1024. Throws Error(kUsage),
/// beginning with `name`, on anything else, on 0, and above 2^60.
int64_t parse_byte_size(const std::string& text, const std::string& name);

}  // namespace tessera
