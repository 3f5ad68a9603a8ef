#pragma once

/// Only in builds with the CUDA backend.
namespace tessera::gpu {

/// Of a GPU, 90 for 9.0: which of the kernels that are not for all run on it.
int compute_capability(int device_index);

}  // namespace tessera::gpu
