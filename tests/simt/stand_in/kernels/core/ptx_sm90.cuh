#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "tests/simt/block_runner.h"
#include "tests/simt/group_matrix.h"
#include "tests/simt/phase_barriers.h"
#include "tests/simt/shared_checks.h"
#include "tests/simt/tensor_copies.h"

/// Stands in for kernels/core/ptx_sm90.cuh in the interpreter: the same functions by their
/// documented meaning. The contracts are there.
namespace tessera::gpu {

inline uint32_t address_in_shared(const void* pointer) {
  return simt::shared_address(pointer);
}

inline void start_barrier(uint64_t* barrier, uint32_t arrivals) {
  simt::start_barrier(barrier, arrivals);
}
inline void show_barriers() {
  simt::show_barriers();
}
inline void arrive(uint64_t* barrier) {
  simt::arrive(barrier, 0);
}
inline void arrive_and_expect(uint64_t* barrier, uint32_t bytes) {
  simt::arrive(barrier, bytes);
}
inline void wait_for_phase(uint64_t* barrier, uint32_t parity) {
  simt::wait_for_phase(barrier, parity);
}

inline void wait_for_phase_or_stop(uint64_t* barrier, uint32_t parity) {
  simt::wait_for_phase(barrier, parity);
}

inline void sync_named(int number, int threads) {
  simt::sync_named(number, threads);
}
inline void arrive_named(int number, int threads) {
  simt::arrive_named(number, threads);
}

inline void copy_box(void* shared, const void* map, uint64_t* barrier, int x, int y, int z) {
  simt::copy_box(shared, map, barrier, x, y, z);
}
inline void copy_line(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  simt::copy_line(shared, global, bytes, barrier);
}
inline void store_box(const void* map, const void* shared, int x, int y, int z) {
  simt::store_box(map, shared, x, y, z);
}
inline void close_stores() {
  simt::close_stores();
}
template <int Pending>
void wait_for_stores() {
  simt::wait_for_stores(Pending);
}
inline void add_to(float* to, float x, float y) {
  if (reinterpret_cast<uintptr_t>(to) % 8 != 0)
    simt::violation("red.v2 to an address not aligned to 8");
  to[0] += x;
  to[1] += y;
}
inline void show_to_units() {
  simt::fence_for_units();
}

template <int kRegisters>
void take_registers() {}
template <int kRegisters>
void give_registers() {}

}  // namespace tessera::gpu
