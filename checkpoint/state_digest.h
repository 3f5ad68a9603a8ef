#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/named_tensor.h"

namespace tessera {

/// The share of each of `tensors`, boxes on the device of `stream` or in host memory, in the
/// logical digest of its tensor.
std::vector<uint64_t> digest_shares(Stream& stream, std::span<const NamedTensor> tensors);

/// One number for the values of many tensors, whatever ranks hold them:
///   S = sum over tensors T of w(T) D(T) mod 2^64,
/// D the logical digest (digest.h) and w(T) the XXH3-64 of the name with its lowest bit set, so
/// that equal tensors under exchanged names change it.
///
/// Returns the share of `tensors`: shares of ranks that together hold every element once add up
/// to S.
uint64_t state_digest(Stream& stream, std::span<const NamedTensor> tensors);

/// A number in four parts of 16 bits, lowest first: their sums are exact, so that a digest can
/// travel among other values of an all_reduce_values().
using DigestParts = std::array<double, 4>;
DigestParts parts_of(uint64_t digest);
/// The sum of digests mod 2^64, of the sums of their parts.
uint64_t digest_of(std::span<const double, 4> sums);

/// Each number becomes its sum over all ranks mod 2^64. Collective.
void sum_digests(Communicator& ranks, std::span<uint64_t> digests);

}  // namespace tessera
