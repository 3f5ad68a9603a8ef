#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::simt {

/// mbarrier and named barriers by their meaning in the PTX ISA; contracts in
/// kernels/core/ptx_sm90.cuh. Violations are: more arrivals than the phase expects; more bytes than
/// were expected, in the end; use of what is no mbarrier or was written over; copies to a barrier
/// that fence.mbarrier_init did not show to them.

void start_barrier(uint64_t* barrier, uint32_t arrivals);
void show_barriers();
void arrive(uint64_t* barrier, uint32_t expected_bytes);
void wait_for_phase(uint64_t* barrier, uint32_t parity);

/// For copies that arrive at `barrier`: their number among LaneClocks' copiers.
uint32_t copier_of(const char* who, uint64_t* barrier);
void bytes_arrive(uint64_t* barrier, uint32_t bytes);

/// bar.sync and bar.arrive: `threads` is a multiple of 32, those of the warps that come.
void sync_named(int number, int threads);
void arrive_named(int number, int threads);

/// Called when a block begins.
void forget_barriers();

}  // namespace tessera::simt
