#pragma once

#include <string>

namespace tessera::simt {

/// Places in this program's code for messages, by addr2line; slow, and "?" where it cannot tell.
/// "tessera::gpu::forward_row", of the address of a function:
std::string code_function(const void* address);
/// "rms_norm_gpu.cu:52", of an address that a call returns to:
std::string code_line(const void* return_address);

}  // namespace tessera::simt
