#include "kernels/matmul.h"
#include "tests/simt/memory_checks.h"

// cuBLASLt is a library for real GPUs. Memory of the interpreter's device is memory of the host, so
// the CPU's product takes its place.

namespace tessera::gpu {

void matmul(Stream& stream, const Matmul& a) {
  const simt::DeviceWork work;
  cpu::matmul(stream.threads(), a);
}

}  // namespace tessera::gpu
