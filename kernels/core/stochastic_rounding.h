#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/core/random.h"

namespace tessera {

/// Rounding to bf16 up or down at random, such that the mean is the number itself: small changes of
/// a weight are not lost. Which way is a pure function of (seed, step, index of the element), the
/// same on every device, for any number of threads and for any cut into tensors.

/// The random bits of eight elements, 8 (index / 8) and after.
class RoundingBits {
 public:
  constexpr RoundingBits(uint64_t seed, int64_t step, int64_t index) {
    const auto words =
        philox(seed, static_cast<uint64_t>(step), static_cast<uint64_t>(index) / kElements);
    low_ = words[0] | uint64_t{words[1]} << 32;
    high_ = words[2] | uint64_t{words[3]} << 32;
  }
  static constexpr int64_t kElements = 8;
  /// 16 bits for one of them.
  constexpr uint32_t of(int64_t index) const {
    const uint64_t four = (index & 4) != 0 ? high_ : low_;
    return static_cast<uint32_t>(four >> (16 * (index & 3))) & 0xFFFF;
  }

 private:
  uint64_t low_;
  uint64_t high_;
};

/// x rounded away from zero with a probability of the distance to the neighbour nearer to zero, in
/// units of theirs; `random` < 2^16. A number of bf16, an infinity or a NaN stays what it is.
constexpr BF16 round_stochastically(float x, uint32_t random) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7F800000) == 0x7F800000) return from_float<BF16>(x);
  return {static_cast<uint16_t>((bits + random) >> 16)};
}

}  // namespace tessera
