#pragma once

#include <cstdint>

#include "tests/simt/group_matrix.h"

/// Stands in for kernels/core/wgmma_sm90.cuh in the interpreter.
namespace tessera::gpu {

inline uint64_t matrix_descriptor(const void* shared, uint32_t next_lines) {
  constexpr uint64_t kBlock = 1024 >> 4;
  constexpr uint64_t kSwizzle128 = 1;
  return uint64_t{simt::shared_address(shared) & 0x3FFFF} >> 4 | uint64_t{next_lines >> 4} << 16 |
         kBlock << 32 | kSwizzle128 << 62;
}

template <int kCount>
void hold_sums(float (&)[kCount]) {}
inline void open_products() {
  simt::open_products();
}
inline void close_products() {
  simt::close_products();
}
template <int Pending>
void wait_for_products() {
  simt::wait_for_products(Pending);
}

template <int kColumns, bool kAlongRows, bool kAlongColumns>
void multiply_64(float (&c)[kColumns / 2], uint64_t a, uint64_t b, bool add) {
  simt::multiply_group({c, kColumns, add, nullptr, a, b, kAlongRows, kAlongColumns});
}
template <int kColumns, bool kAlongColumns>
void multiply_64(float (&c)[kColumns / 2], const uint32_t (&a)[4], uint64_t b, bool add) {
  simt::multiply_group({c, kColumns, add, a, 0, b, false, kAlongColumns});
}
template <bool kColumns>
void multiply_64_256(float (&c)[128], uint64_t a, uint64_t b) {
  simt::multiply_group({c, 256, true, nullptr, a, b, false, kColumns});
}

}  // namespace tessera::gpu
