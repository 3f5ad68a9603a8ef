#include "kernels/tile_choice.h"

namespace tessera::cpu {

namespace {

F32x16 scores_of(I32x16 keys) {
  return std::bit_cast<F32x16>(keys ^ ((keys >> 31) & 0x7FFFFFFF));
}

/// A key in (low, high] where low < high. Halves the interval of scores, which are spread evenly;
/// in every fourth pass that of their bits, which is certain to end.
I32x16 split(I32x16 low, I32x16 high, int pass) {
  const U32x16 distance = std::bit_cast<U32x16>(high) - std::bit_cast<U32x16>(low);
  const I32x16 half_of_bits = high - std::bit_cast<I32x16>(distance >> 1);
  if (pass % 4 == 3) return half_of_bits;
  const I32x16 half = keys_of(0.5f * scores_of(low) + 0.5f * scores_of(high));
  return (half > low) & (half <= high) ? half : half_of_bits;
}

/// Per lane: how many keys are at least `bound`.
I32x16 count_at_least(std::span<const I32x16> keys, I32x16 bound) {
  const I32x16 one = I32x16{} + 1;
  I32x16 count{};
  for (const I32x16& key : keys) count = key >= bound ? count + one : count;
  return count;
}

}  // namespace

Threshold find_threshold(std::span<const I32x16> keys, int32_t wanted) {
  I32x16 low = keys[0];
  I32x16 high = keys[0];
  for (const I32x16& key : keys) {
    low = key < low ? key : low;
    high = key > high ? key : high;
  }
  // At least `wanted` keys are >= low, fewer are > high.
  I32x16 above = I32x16{} + static_cast<int32_t>(keys.size());
  const I32x16 target = I32x16{} + wanted;
  for (int pass = 0; (at_least(low, high) | at_least(target, above)) != 0xFFFF; ++pass) {
    const I32x16 middle = split(low, high, pass);
    const I32x16 count = count_at_least(keys, middle);
    const auto enough = count >= target;
    low = enough ? middle : low;
    above = enough ? count : above;
    // Of unsigned numbers: a lane whose keys are all the smallest number is not used, but computed.
    high = enough ? high : std::bit_cast<I32x16>(std::bit_cast<U32x16>(middle) - 1u);
  }
  return {low, above};
}

}  // namespace tessera::cpu
