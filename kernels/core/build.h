#pragma once

#ifndef TESSERA_WITH_CUDA
#error "a file that includes this needs CUDA_SWITCH among its COMPILE_DEFINITIONS"
#endif

namespace tessera {

/// True in a build with the CUDA backend. The only build switch that C++ code may read.
inline constexpr bool kCudaBuilt = TESSERA_WITH_CUDA;

}  // namespace tessera
