#pragma once

#ifndef TESSERA_WITH_CUDA
#define TESSERA_WITH_CUDA 0
#endif

namespace tessera {

/// True in a build with the CUDA backend. The only build switch that C++ code may read.
inline constexpr bool kCudaBuilt = TESSERA_WITH_CUDA;

}  // namespace tessera
