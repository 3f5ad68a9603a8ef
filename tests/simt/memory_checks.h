#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace tessera::simt {

/// Device memory of the interpreter. g++ calls `check_access` before every load and store of a
/// kernel (-fsanitize=kernel-address with calls for all of them; sanitizer_calls.cc). Allowed are
///  - global memory: inside of one allocation; two lanes that touch the same bytes, one of them to
///    write, are ordered by a barrier of their block, or by a fence and an atomic between blocks;
///  - shared memory: inside of what the launch asked for; read only what was written by this
///    block; two lanes as above, ordered by a barrier of the block or __syncwarp of the warp;
///  - the lane's own stack, constants of the program, the kernel's arguments.
/// Anything else ends the launch with an Error.

enum class Access : uint8_t { kRead, kWrite, kAtomic };
void check_access(const void* address, size_t bytes, Access access);

/// Global memory that kernels may touch. Freed with release. Memory that is not `managed` is only
/// there while a kernel or a copy of the runtime works: code of the host that touches it at another
/// time gets a segmentation fault, after a line on standard error that says so.
void* allocate(size_t bytes, bool managed);
void release(void* data);
/// Bytes of the allocation that begins at or covers `data` from there on; 0: none.
size_t bytes_from(const void* data);

/// While one is alive, this thread's work may touch global memory that is not managed.
class DeviceWork {
 public:
  DeviceWork();
  ~DeviceWork();
  DeviceWork(const DeviceWork&) = delete;
  DeviceWork& operator=(const DeviceWork&) = delete;
};

/// Called by the runner. A launch, a block, a barrier of the block, of a warp, a fence of a lane.
/// `frame`: an address on the stack of the launching function; the arguments are a little above it.
void launch_begins(const void* frame);
void block_begins(void* shared, int64_t shared_bytes, const void* stacks, size_t stack_bytes);
void launch_ends();
void block_synchronised();
void warp_synchronised(int warp, uint32_t mask);
void lane_fenced();

/// As a read by this lane and by another one of its warp, of shared memory: a warp operation that
/// hands on what it reads.
void check_read_by_warp(const void* address, size_t bytes);
/// A copy to shared memory is under way: as a write, after which nobody may read or write there
/// before the copy's own write, which is that of its end.
void asynchronous_copy_starts(void* address, size_t bytes);
void asynchronous_copy_ends(void* address, size_t bytes);

}  // namespace tessera::simt
