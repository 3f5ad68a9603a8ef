#include <gtest/gtest.h>

#include <cstdio>

#include "kernels/core/device.h"
#include "tests/support/device.h"

// main of test programs whose kernels run on support::device(): where that is a GPU and there is
// none, no test runs, and a line in GoogleTest's words says why, by which ctest counts them as
// skipped.

namespace tessera::support {
namespace {

bool lacks_its_device() {
  if (device().kind != DeviceKind::kGpu || GTEST_FLAG_GET(list_tests)) return false;
  const Gpus gpus = find_gpus();
  if (gpus.count > 0) return false;
  std::printf("[  SKIPPED ] every test: they need a GPU: %s\n", gpus.trouble.c_str());
  return true;
}

}  // namespace
}  // namespace tessera::support

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return tessera::support::lacks_its_device() ? 0 : RUN_ALL_TESTS();
}
