#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// The instructions of sm_90a that C++ has no words for: copies of tiles by the memory unit (TMA),
/// the barriers that these end at, and more; products are in wgmma_sm90.cuh. Each by its documented
/// meaning (PTX ISA 8.x). Kernels that include this are built for sm_90a alone, and have a twin for
/// sm_80. The tests replace this file by one in plain C++ (tests/simt/stand_in).
namespace tessera::gpu {

__device__ __forceinline__ uint32_t address_in_shared(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// mbarrier: a phase is over when `arrivals` have arrived and all expected bytes are there.
__device__ __forceinline__ void start_barrier(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
               :
               : "r"(address_in_shared(barrier)), "r"(arrivals)
               : "memory");
}
/// After the last start_barrier and before a barrier of the block: the memory unit sees them too.
__device__ __forceinline__ void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address_in_shared(barrier))
               : "memory");
}
/// Arrives, and the phase waits for `bytes` of copies as well.
__device__ __forceinline__ void arrive_and_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(address_in_shared(barrier)), "r"(bytes)
               : "memory");
}
/// Whether the phase of this parity is over; may wait for a while to see.
__device__ __forceinline__ bool is_phase_over(uint64_t* barrier, uint32_t parity) {
  uint32_t over;
  asm volatile(
      "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
      "selp.u32 %0, 1, 0, p;}"
      : "=r"(over)
      : "r"(address_in_shared(barrier)), "r"(parity)
      : "memory");
  return over != 0;
}
/// Waits for the end of the phase of this parity: 0 for the first. A barrier that has had none
/// counts as after one of parity 1.
__device__ __forceinline__ void wait_for_phase(uint64_t* barrier, uint32_t parity) {
  while (!is_phase_over(barrier, parity)) {
  }
}
/// The same, but what does not end in some ten seconds stops the kernel: the host hears of it, and
/// does not wait for ever. For warps that copy, and for those that multiply where it does not
/// cost them registers: attention's backward has none left, and spills.
__device__ __forceinline__ void wait_for_phase_or_stop(uint64_t* barrier, uint32_t parity) {
  constexpr int64_t kMostClocks = int64_t{20} << 30;
  if (is_phase_over(barrier, parity)) return;
  const int64_t begin = clock64();
  while (!is_phase_over(barrier, parity)) {
    if (clock64() - begin > kMostClocks) __trap();
  }
}

/// cp.async.bulk.tensor: the box at (x, y, z) of the tensor that `map` describes, x innermost,
/// zeros where it leaves the tensor; its bytes arrive at `barrier`. By one lane.
__device__ __forceinline__ void copy_box(void* shared, const void* map, uint64_t* barrier, int x,
                                         int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];"
      :
      : "r"(address_in_shared(shared)), "l"(map), "r"(address_in_shared(barrier)), "r"(x), "r"(y),
        "r"(z)
      : "memory");
}

/// cp.async.bulk: `bytes`, a multiple of 16, from and to addresses that are, to arrive at
/// `barrier`.
__device__ __forceinline__ void copy_line(void* shared, const void* global, uint32_t bytes,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      :
      : "r"(address_in_shared(shared)), "l"(global), "r"(bytes), "r"(address_in_shared(barrier))
      : "memory");
}

/// The other way: what is in the tensor of a box in shared memory, which may be written again after
/// wait_for_stores. Before it, show_to_units by who wrote there, and a barrier.
__device__ __forceinline__ void store_box(const void* map, const void* shared, int x, int y,
                                          int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];"
               :
               : "l"(map), "r"(address_in_shared(shared)), "r"(x), "r"(y), "r"(z)
               : "memory");
}
/// Closes the group of this lane's stores since the last one.
__device__ __forceinline__ void close_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// Waits until at most the last `Pending` groups have yet to read shared memory.
template <int Pending>
__device__ __forceinline__ void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}

/// red.add.v2: adds two numbers to memory, aligned to 8, without reading them here. Sums of one
/// addend per address do not depend on any order.
__device__ __forceinline__ void add_to(float* to, float x, float y) {
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(x), "f"(y) : "memory");
}

/// fence.proxy.async: what this lane wrote to shared memory is there for the units that copy and
/// multiply, once a barrier told who starts them.
__device__ __forceinline__ void show_to_units() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// bar.sync and bar.arrive: a barrier of `threads`, a multiple of 32, that whole warps come to. It
/// has a number from 1 to 15: 0 is that of __syncthreads.
__device__ __forceinline__ void sync_named(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
__device__ __forceinline__ void arrive_named(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

/// setmaxnreg: from here on the warps of this group have so many registers; a multiple of 8 from 24
/// to 256. By all warps of a group. More: waits until others of the block gave some.
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace tessera::gpu
