#include "kernels/core/device.h"

#include <gtest/gtest.h>

#include "kernels/core/build.h"
#include "kernels/core/error.h"

namespace tessera {
namespace {

TEST(Stream, KnowsItsDeviceAndThreads) {
  Stream cpu(Device{}, 3);
  EXPECT_TRUE(cpu.on(DeviceKind::kCpu));
  EXPECT_FALSE(cpu.on(DeviceKind::kPlan));
  EXPECT_EQ(cpu.threads().threads(), 3);
  EXPECT_EQ(cpu.handle(), nullptr);
  cpu.synchronize();
  Stream plan(Device{DeviceKind::kPlan}, 3);
  EXPECT_TRUE(plan.on(DeviceKind::kPlan));
  EXPECT_EQ(plan.threads().threads(), 1);
}

TEST(Stream, SaysHowToGetAGpu) {
  if constexpr (kCudaBuilt) GTEST_SKIP() << "this build has the CUDA backend";
  try {
    Stream gpu(Device{DeviceKind::kGpu});
    FAIL() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    EXPECT_NE(std::string(e.what()).find("this build has no CUDA backend"), std::string::npos);
  }
}

TEST(Device, EqualWhenKindAndIndexAre) {
  EXPECT_EQ(Device{}, (Device{DeviceKind::kCpu, 0}));
  EXPECT_NE((Device{DeviceKind::kGpu, 0}), (Device{DeviceKind::kGpu, 1}));
  EXPECT_NE(Device{}, Device{DeviceKind::kPlan});
}

}  // namespace
}  // namespace tessera
