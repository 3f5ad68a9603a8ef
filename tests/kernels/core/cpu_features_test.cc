#include "kernels/core/cpu_features.h"

#include <gtest/gtest.h>

#include <string>

namespace tessera {

namespace {

// That it names what an older processor lacks can be seen only on one: here, that it does not
// refuse the processor that runs all other tests.
TEST(CpuFeatures, TheProcessorThatRunsTheTestsLacksNothing) {
  const char* const missing = missing_cpu_feature();
  EXPECT_EQ(missing, nullptr) << std::string(missing == nullptr ? "" : missing);
}

}  // namespace

}  // namespace tessera
