#pragma once

#include <cstdint>

namespace tessera::simt {

/// ldmatrix, mma.sync and cp.async by their meaning in the PTX ISA; contracts in
/// kernels/core/ptx.cuh. Layouts of fragments are written down here once more, from the manual.

void load_matrices(uint32_t (&part)[4], const void* row, bool transposed);

enum class Factors : uint8_t { kBf16, kTf32 };
/// c += a b of the whole warp; products and their sum in double, rounded once.
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Factors factors);

/// A copy is invisible, and its place unreadable, until its lane has waited for it.
void start_copy(void* shared, const void* global, bool valid);
void close_copies();
void wait_for_copies(int pending_groups);
/// Called when a block begins: nothing is under way.
void forget_copies();

}  // namespace tessera::simt
