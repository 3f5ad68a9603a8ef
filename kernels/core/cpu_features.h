#pragma once

namespace tessera {

/// Name of an instruction set that the kernels were compiled for (CPU_ARCH, by default that of the
/// building machine) and this processor lacks, such as "avx512bf16"; nullptr when it has them all.
/// Itself runs on any processor. Call it first in main: after it anything may use any of them.
const char* missing_cpu_feature();

}  // namespace tessera
