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

TEST(Stream, RefusesAGpuThatIsNotThere) {
  const Gpus gpus = find_gpus();
  EXPECT_EQ(gpus.count == 0, !gpus.trouble.empty());
  try {
    Stream gpu(Device{DeviceKind::kGpu, gpus.count});
    FAIL() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kUsage);
    EXPECT_EQ(e.what(), gpu_complaint(gpus, gpus.count));
    EXPECT_EQ(kCudaBuilt,
              std::string(e.what()).find("this build has no CUDA backend") == std::string::npos);
  }
}

TEST(GpuComplaint, NamesWhatIsThereAndTheWayOut) {
  EXPECT_EQ(gpu_complaint({2}, 1), "");
  EXPECT_EQ(
      gpu_complaint({0, "no CUDA-capable device is detected"}, 0),
      "device: gpu was asked for, but there is none to use: no CUDA-capable device is detected; "
      "use a machine with one, or set device to cpu");
  const std::string few = gpu_complaint({2}, 2);
  EXPECT_NE(few.find("GPU 2 was asked for, but CUDA sees 2 GPUs here"), std::string::npos) << few;
  EXPECT_NE(few.find("set device to cpu"), std::string::npos) << few;
  EXPECT_NE(gpu_complaint({1}, -1), "");
}

TEST(Device, EqualWhenKindAndIndexAre) {
  EXPECT_EQ(Device{}, (Device{DeviceKind::kCpu, 0}));
  EXPECT_NE((Device{DeviceKind::kGpu, 0}), (Device{DeviceKind::kGpu, 1}));
  EXPECT_NE(Device{}, Device{DeviceKind::kPlan});
}

}  // namespace
}  // namespace tessera
