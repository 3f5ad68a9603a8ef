#pragma once

#include <cstdint>
#include <span>

#include "kernels/core/thread_pool.h"
#include "parallel/named_tensor.h"

namespace tessera {

/// One number for the values of many tensors, whatever ranks hold them:
///   S = sum over tensors T of w(T) D(T) mod 2^64,
/// D the logical digest (digest.h) and w(T) the XXH3-64 of the name with its lowest bit set, so
/// that equal tensors under exchanged names change it.
///
/// Returns the share of `tensors`, boxes in host memory: shares of ranks that together hold every
/// element once add up to S.
uint64_t state_digest(ThreadPool& threads, std::span<const NamedTensor> tensors);

}  // namespace tessera
