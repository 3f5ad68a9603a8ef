#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "tests/simt/lane_state.h"

namespace tessera::simt {

/// Runs a kernel: block after block, each CUDA thread (lane) a fiber that runs until it waits.
/// Throws Error with kernel, block and lane when a lane breaks a rule: an access outside of what it
/// may touch (see memory_checks.h), a barrier or a warp operation that not all named lanes reach.
/// `shared_bytes` of dynamic shared memory; `body` calls the kernel once, as one lane.
struct Launch {
  const void* kernel;  ///< the function, for messages
  dim3 grid;
  dim3 block;
  int64_t shared_bytes = 0;
};
void run(const Launch& launch, const std::function<void()>& body);

/// Whether this thread of the host is inside of a lane.
bool in_lane();
/// Lane of the block: x + size.x (y + size.y z).
int current_lane();
/// The place in the code that the lane is at, for the message of a violation.
void note_site(const void* return_address);
/// The rule is broken: ends the whole launch, which throws. Does not return.
[[noreturn]] void violation(const std::string& what);
/// The same, called by the kernel itself, whose code may not make a string.
[[noreturn]] void stop_kernel(const char* why);

/// Waits until all lanes of the block are here. `site` names the barrier for messages. Returns
/// the sum of what the lanes gave.
int64_t block_barrier(const char* site, int64_t value);

/// A warp operation: waits until every lane of `mask` called with the same `site` and mask; the
/// last one to come calls combine(payloads), one pointer per lane of the warp, null outside of
/// `mask`. A payload lives until its lane goes on.
using Combine = void (*)(void* const payloads[32], int argument);
void warp_operation(const char* site, uint32_t mask, void* payload, Combine combine, int argument);

/// Waits until ready(what). `site` and `detail` name it for messages.
using Ready = bool (*)(const void* what);
void wait_until(const char* site, int64_t detail, Ready ready, const void* what);

/// An operation of a warp group, 128 lanes of which the first is a multiple of 128: as
/// warp_operation, of all of them. The last one to come calls combine(payloads).
inline constexpr size_t kGroupLanes = 128;
using GroupCombine = void (*)(void* const payloads[kGroupLanes]);
void group_operation(const char* site, void* payload, GroupCombine combine);

/// Orders the memory accesses of the lanes of the warp: __syncwarp.
void warp_barrier(uint32_t mask);

}  // namespace tessera::simt
