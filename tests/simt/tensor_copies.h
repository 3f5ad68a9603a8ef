#pragma once

#include <cstdint>

namespace tessera::simt {

/// cp.async.bulk by its meaning in the PTX ISA; contracts in kernels/core/ptx_sm90.cuh. The bytes
/// are there at once, but a lane that has not waited for the barrier may not touch them, and what
/// a store reads may not be written before the wait.

/// Box at (x, y, z) of the tensor of a CUtensorMap.
void copy_box(void* shared, const void* map, uint64_t* barrier, int x, int y, int z);
void copy_line(void* shared, const void* global, uint32_t bytes, uint64_t* barrier);

void store_box(const void* map, const void* shared, int x, int y, int z);
void close_stores();
void wait_for_stores(int pending_groups);

/// Called when a block begins.
void forget_stores();

}  // namespace tessera::simt
