#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::simt {

/// wgmma by its meaning in the PTX ISA; contracts in kernels/core/wgmma_sm90.cuh. Until a product
/// was waited for its sums are NaN, and a lane that touches them by an instrumented access breaks a
/// rule; so does who writes where a product reads, before he knows of the wait of all four warps.
/// Sums in double, rounded once per product.

/// Address in the window of shared memory, as in descriptors. The first byte of a block's memory is
/// aligned to 16 only, as CUDA promises no more.
uint32_t shared_address(const void* pointer);
/// Swizzle of 128 bytes: bits 4 to 6 of an address xor bits 7 to 9.
constexpr uint32_t swizzled_128(uint32_t address) {
  return address ^ (address >> 3 & 0x70);
}

struct GroupProduct {
  float* c;  ///< [columns / 2]
  int columns;
  bool add;           ///< to c; else c is overwritten
  const uint32_t* a;  ///< [4], or nullptr: a_matrix
  uint64_t a_matrix;  ///< descriptor
  uint64_t b_matrix;
  bool a_along_rows;     ///< lines of a are along rows, not along depth
  bool b_along_columns;  ///< lines of b are along columns
};
void multiply_group(const GroupProduct& product);

void open_products();
void close_products();
void wait_for_products(int pending_groups);

/// An access of the current lane to its own registers.
void check_registers(const void* address, size_t bytes);
/// Called when a block begins.
void forget_products();

}  // namespace tessera::simt
