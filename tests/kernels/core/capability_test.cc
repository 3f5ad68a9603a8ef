#include "kernels/core/capability.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

TEST(Capability, IsOneThatKernelsAreBuiltFor) {
  EXPECT_GE(gpu::compute_capability(0), 80);
}

}  // namespace
}  // namespace tessera
