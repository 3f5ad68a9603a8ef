#pragma once

#include "kernels/core/device.h"

namespace tessera::gpu {

/// sums[i] += the sum over c < chunks of parts[c, i], for i < count, in an order that depends on
/// `chunks` alone. parts [chunks, count] and sums [count] are on the device.
void add_chunks(Stream& stream, float* sums, const float* parts, int64_t count, int64_t chunks);

}  // namespace tessera::gpu
