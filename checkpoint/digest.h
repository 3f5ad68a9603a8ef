#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "checkpoint/box.h"
#include "kernels/core/dtype.h"

namespace tessera {

/// The logical digest of a tensor T, whatever ranks or files hold its elements:
///   D(T) = sum over i of mix64(i, bits(T[i])) mod 2^64,
/// i the row-major index in the whole tensor, bits(x) the bit pattern as an unsigned number, and
///   mix64(i, b) = f(0x9E3779B97F4A7C15 (i + 1) + 0xD1B54A32D192ED03 b), all mod 2^64,
///   f(x): x ^= x >> 30; x *= 0xBF58476D1CE4E5B9; x ^= x >> 27; x *= 0x94D049BB133111EB;
///         x ^= x >> 31  (the finaliser of SplitMix64, Steele et al. 2014).
/// The sums of disjoint blocks add up to the digest, so one all-reduce gives it on any mesh.
///
/// Returns the sum over a stretch of `block`: the elements number `first`, `first` + 1, ... in
/// the block's row-major order whose values are `data`, little-endian and packed. `whole` is the
/// shape of the tensor and holds `block`; `data` is whole elements and ends within the block.
uint64_t digest(DType dtype, const Shape& whole, const Box& block, int64_t first,
                std::span<const std::byte> data);

}  // namespace tessera
