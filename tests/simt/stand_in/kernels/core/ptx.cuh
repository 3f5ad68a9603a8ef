#pragma once

#include <bit>
#include <cstdint>

#include "kernels/core/dtype.h"
#include "tests/simt/warp_matrix.h"

/// Stands in for kernels/core/ptx.cuh in the interpreter: the same functions by their documented
/// meaning. The contracts are there.
namespace tessera::gpu {

inline void load_matrices(uint32_t (&part)[4], const void* row) {
  simt::load_matrices(part, row, false);
}
inline void load_transposed(uint32_t (&part)[4], const void* row) {
  simt::load_matrices(part, row, true);
}
inline void multiply_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  simt::multiply(c, a, b0, b1, simt::Factors::kBf16);
}
inline void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  simt::multiply(c, a, b0, b1, simt::Factors::kTf32);
}
inline uint32_t to_tf32(float x) {
  // To nearest, ties away from zero: half a unit of the last of the ten bits, then cut.
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return (bits & 0x7F800000) == 0x7F800000 ? bits : (bits + 0x1000) & ~uint32_t{0x1FFF};
}
inline uint32_t pack_bf16(float low, float high) {
  return uint32_t{from_float<BF16>(low).bits} | uint32_t{from_float<BF16>(high).bits} << 16;
}
inline uint32_t multiply_add_bf16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t bits = 0;
  for (int shift : {0, 16}) {
    const auto number = [shift](uint32_t of) {
      return double{to_float(BF16{static_cast<uint16_t>(of >> shift)})};
    };
    // Products and sums of bf16 are exact in double; float keeps enough of them to round once more.
    const auto sum = static_cast<float>(number(a) * number(b) + number(c));
    bits |= uint32_t{from_float<BF16>(sum).bits} << shift;
  }
  return bits;
}
inline float fast_exp2(float x) {
  return std::exp2(x);
}
inline void copy_async(void* shared, const void* global, bool valid) {
  simt::start_copy(shared, global, valid);
}
inline void close_copies() {
  simt::close_copies();
}
template <int Pending>
void wait_for_copies() {
  simt::wait_for_copies(Pending);
}

/// Words in memory, whatever else they may be.
template <int N>
struct [[gnu::may_alias]] alignas(4 * N) Words {
  uint32_t values[N];
};
inline void store_words(void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  *static_cast<Words<4>*>(to) = {{a, b, c, d}};
}
inline void store_words(void* to, uint32_t a, uint32_t b) {
  *static_cast<Words<2>*>(to) = {{a, b}};
}

}  // namespace tessera::gpu
