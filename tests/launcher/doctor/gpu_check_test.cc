#include <gtest/gtest.h>

#include "launcher/doctor/checks.h"
#include "tests/launcher/doctor/text_machine.h"

namespace tessera {
namespace {

using support::about;
using support::TextMachine;

constexpr const char* kQuery =
    "nvidia-smi "
    "--query-gpu=index,name,driver_version,memory.total,memory.used,"
    "ecc.errors.uncorrected.volatile.total --format=csv,noheader,nounits";
constexpr const char* kPeers = "nvidia-smi topo -p2p r";

Program with_cuda(const std::string& nccl = "2.28.9") {
  Program program;
  program.cuda = true;
  program.nccl = nccl;
  return program;
}

TextMachine two_gpus(const std::string& second = "1, NVIDIA H100, 535.104, 81559, 3, 0") {
  TextMachine machine;
  machine.says(kQuery, "0, NVIDIA H100, 535.104, 81559, 3, 0\n" + second + "\n");
  machine.says(kPeers, " \tGPU0\tGPU1\n GPU0\tX\tOK\n GPU1\tOK\tX\n\nLegend:\n\n  X    = Self\n");
  return machine;
}

TEST(GpuCheck, NoDriver) {
  const TextMachine machine;
  EXPECT_EQ(about(check_gpus(machine, {}), "gpu"),
            "ok no NVIDIA driver, and the program was built without CUDA");
  EXPECT_TRUE(about(check_gpus(machine, with_cuda()), "gpu").starts_with("warn no NVIDIA driver"));
}

TEST(GpuCheck, GoodGpus) {
  const Findings findings = check_gpus(two_gpus(), with_cuda());
  EXPECT_EQ(about(findings, "gpu"), "ok 2 x NVIDIA H100, driver 535.104, 85.5 GB each");
  EXPECT_EQ(about(findings, "peers"), "ok each of the 2 GPUs reaches the others' memory");
  EXPECT_EQ(about(findings, "nccl"), "ok NCCL 2.28.9");
}

TEST(GpuCheck, AProgramWithoutCudaLeavesThemAlone) {
  EXPECT_NE(about(check_gpus(two_gpus(), {}), "gpu").find("warn the program was built without"),
            std::string::npos);
}

TEST(GpuCheck, TroubleOfOneGpuNamesIt) {
  const auto judged = [](const std::string& second) {
    return about(check_gpus(two_gpus(second), with_cuda()), "gpu");
  };
  EXPECT_NE(judged("1, NVIDIA H100, 535.104, 81559, 3, 2").find("fail GPU 1 has had 2 memory"),
            std::string::npos);
  EXPECT_NE(
      judged("1, NVIDIA H100, 535.104, 81559, 70000, 0").find("warn GPU 1 has 73.4 GB in use"),
      std::string::npos);
  EXPECT_TRUE(judged("1, NVIDIA A100, 535.104, 40960, 3, 0").starts_with("warn 2 x NVIDIA H100"));
  EXPECT_TRUE(judged("1, NVIDIA H100, 535.104, [N/A], [N/A], [N/A]").starts_with("ok 2 x"));
}

TEST(GpuCheck, PairsThatAreApart) {
  TextMachine machine = two_gpus();
  machine.says(kPeers, " \tGPU0\tGPU1\n GPU0\tX\tNS\n GPU1\tNS\tX\n");
  const std::string apart = about(check_gpus(machine, with_cuda()), "peers");
  EXPECT_TRUE(apart.starts_with("warn 1 pairs of GPUs do not reach each other's memory, as 0-1"))
      << apart;
  machine.says(kPeers, "something else");
  EXPECT_TRUE(about(check_gpus(machine, with_cuda()), "peers").starts_with("ok nvidia-smi topo"));
}

TEST(GpuCheck, ADriverThatDoesNotAnswerFails) {
  TextMachine machine;
  machine.fails(kQuery, 9, "Failed to initialize NVML: Driver/library version mismatch");
  machine.files["/proc/driver/nvidia/version"] = "NVRM version: 535";
  EXPECT_TRUE(about(check_gpus(machine, with_cuda()), "gpu")
                  .starts_with("fail there is an NVIDIA driver, but it ended with 9: Failed"));
  TextMachine hangs;
  hangs.commands[kQuery] = {.exit_code = 143,
                            .timed_out = true,
                            .output = "",
                            .errors = "",
                            .trouble = "nvidia-smi did not end within 8 s"};
  EXPECT_TRUE(about(check_gpus(hangs, with_cuda()), "gpu").starts_with("fail there is an NVIDIA"));
  TextMachine none;
  none.says(kQuery, "No devices were found\n");
  EXPECT_TRUE(
      about(check_gpus(none, with_cuda()), "gpu").starts_with("warn the NVIDIA driver sees"));
}

TEST(GpuCheck, NcclVersions) {
  const TextMachine machine;
  const auto nccl = [&](const std::string& version) {
    return about(check_gpus(machine, with_cuda(version)), "nccl");
  };
  EXPECT_TRUE(nccl("2.28.3").starts_with("warn NCCL 2.28.3"));
  EXPECT_TRUE(nccl("2.28.8").starts_with("warn"));
  EXPECT_EQ(nccl("2.28.2"), "ok NCCL 2.28.2");
  EXPECT_EQ(nccl("2.29.1"), "ok NCCL 2.29.1");
  EXPECT_TRUE(nccl("").starts_with("warn libnccl"));
  EXPECT_TRUE(about(check_gpus(machine, {}), "nccl").starts_with("ok not installed"));
}

}  // namespace
}  // namespace tessera
