#pragma once

#include <cstdint>
#include <functional>

#include "checkpoint/reader.h"

namespace tessera {

struct VerifyProgress {
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
};

/// Reads every byte of a checkpoint once and checks every block's CRC-32C, every file's XXH3-128,
/// every blob's CRC and every tensor's logical digest. Calls `progress` after every block.
/// Throws kBadData at the first damage, naming file, bytes and tensors.
void verify_checkpoint(const CheckpointReader& reader,
                       const std::function<void(const VerifyProgress&)>& progress = {});

}  // namespace tessera
