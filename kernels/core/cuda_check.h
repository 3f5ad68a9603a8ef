#pragma once

#include <cuda_runtime.h>

#include "kernels/core/error.h"

/// Throws Error when a CUDA runtime call fails, with the call and CUDA's own text. For .cu files.
#define CUDA_CHECK(call)                                                                   \
  do {                                                                                     \
    const cudaError_t cuda_status = (call);                                                \
    CHECK(cuda_status == cudaSuccess, #call " failed: ", cudaGetErrorString(cuda_status)); \
  } while (false)
