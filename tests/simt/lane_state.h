#pragma once

#include <cstdint>

#include "tests/simt/vector_types.h"

namespace tessera::simt {

/// Bytes of shared memory that a block may ask for: those of sm_90.
inline constexpr int64_t kSharedBytes = 227 * 1024;

}  // namespace tessera::simt

/// What a lane sees of its launch. One each per thread of the host: it runs one block at a time
/// and switches between the block's lanes, writing `threadIdx` each time.
extern thread_local constinit uint3 threadIdx;
extern thread_local constinit uint3 blockIdx;
extern thread_local constinit dim3 blockDim;
extern thread_local constinit dim3 gridDim;
