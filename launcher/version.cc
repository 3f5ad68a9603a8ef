#include "launcher/version.h"

#include "kernels/core/build.h"
#include "kernels/core/error.h"

namespace tessera {

std::string version_text() {
  return concat("tessera ", TESSERA_VERSION, " (", TESSERA_BUILD_TYPE,
                ", -march=", TESSERA_CPU_ARCH, ", ", kCudaBuilt ? "with" : "without", " CUDA)");
}

}  // namespace tessera
