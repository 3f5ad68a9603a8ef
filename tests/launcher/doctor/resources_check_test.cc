#include <gtest/gtest.h>

#include "launcher/doctor/checks.h"
#include "launcher/doctor/control_group.h"
#include "tests/launcher/doctor/text_machine.h"

namespace tessera {
namespace {

using support::about;
using support::TextMachine;

std::string limit(const std::string& name, const std::string& value) {
  return name + std::string(26 - name.size(), ' ') + value + "   unlimited   units\n";
}

std::string good_limits() {
  return "Limit                     Soft Limit           Hard Limit           Units     \n" +
         limit("Max cpu time", "unlimited") + limit("Max file size", "unlimited") +
         limit("Max stack size", "8388608") + limit("Max core file size", "0") +
         limit("Max processes", "96365") + limit("Max open files", "20000") +
         limit("Max locked memory", "8388608") + limit("Max address space", "unlimited");
}

// One limit is another than that of good_limits().
std::string limits_with(const std::string& name, const std::string& value, bool fabric = false) {
  TextMachine machine;
  std::string& text = machine.files["/proc/self/limits"];
  text = limit(name, value) + good_limits();
  if (fabric) machine.files["/sys/class/infiniband/mlx5_0/node_type"] = "1: CA";
  return about(check_limits(machine), "limits");
}

TEST(LimitsCheck, Good) {
  TextMachine machine;
  machine.files["/proc/self/limits"] = good_limits();
  EXPECT_EQ(about(check_limits(machine), "limits"),
            "ok locked memory 8.39 MB, open files 20000, processes 96365, stack 8.39 MB, core "
            "files off");
  EXPECT_TRUE(
      about(check_limits(TextMachine()), "limits").starts_with("ok /proc/self/limits cannot"));
}

TEST(LimitsCheck, EachLimitThatIsTooLow) {
  EXPECT_TRUE(limits_with("Max open files", "1024").starts_with("warn open files is 1024: MPI"));
  EXPECT_NE(limits_with("Max open files", "1024").find("-> ulimit -n 4096"), std::string::npos);
  EXPECT_TRUE(limits_with("Max processes", "100").starts_with("warn processes is 100"));
  EXPECT_TRUE(limits_with("Max file size", "1048576").starts_with("fail file size is 1048576"));
  EXPECT_TRUE(limits_with("Max cpu time", "3600").starts_with("warn cpu time is 3600"));
  EXPECT_TRUE(limits_with("Max address space", "99999999").starts_with("warn address space"));
  EXPECT_TRUE(limits_with("Max locked memory", "65536").starts_with("ok locked memory 65.5 kB"));
  EXPECT_TRUE(limits_with("Max locked memory", "65536", true)
                  .starts_with("fail locked memory is 65.5 kB: InfiniBand"));
  EXPECT_TRUE(limits_with("Max locked memory", "unlimited", true).starts_with("ok"));
  EXPECT_TRUE(limits_with("Max open files", "").starts_with("ok")) << "nonsense is passed over";
}

TextMachine with_memory(const std::string& available = "20000000 kB") {
  TextMachine machine;
  machine.files["/proc/meminfo"] =
      "MemTotal:       24684096 kB\nMemFree:  1 kB\nMemAvailable:   " + available + "\n";
  machine.spaces["/dev/shm"] = {.total = 12'000'000'000, .free = 11'000'000'000};
  return machine;
}

TEST(MemoryCheck, Good) {
  const Findings findings = check_memory(with_memory());
  EXPECT_EQ(about(findings, "memory"), "ok 25.3 GB in all, 20.5 GB free");
  EXPECT_EQ(about(findings, "shm"), "ok /dev/shm has 12 GB, 11 GB free");
  EXPECT_NE(worst_of(check_memory(TextMachine())), Verdict::kFail);
}

TEST(MemoryCheck, LittleOrLimitedMemory) {
  EXPECT_TRUE(about(check_memory(with_memory("300000 kB")), "memory")
                  .starts_with("warn 25.3 GB in all, 307 MB free -> end what"));
  TextMachine machine = with_memory();
  machine.files["/proc/self/cgroup"] = "0::/a/b\n";
  machine.files["/sys/fs/cgroup/a/b/memory.max"] = "max\n";
  machine.files["/sys/fs/cgroup/a/memory.max"] = "4000000000\n";
  machine.files["/sys/fs/cgroup/a/memory.current"] = "1000000000\n";
  EXPECT_EQ(about(check_memory(machine), "memory"),
            "ok 25.3 GB in all, 20.5 GB free; this control group may have 4 GB and uses 1 GB");
  machine.files["/sys/fs/cgroup/a/memory.max"] = "500000000\n";
  EXPECT_TRUE(about(check_memory(machine), "memory").starts_with("warn"));
  machine.files["/sys/fs/cgroup/a/b/memory.events"] = "low 0\noom 3\noom_kill 3\n";
  EXPECT_NE(about(check_memory(machine), "memory").find("has ended 3 processes"),
            std::string::npos);
  machine.files["/proc/sys/vm/overcommit_memory"] = "2\n";
  EXPECT_NE(about(check_memory(machine), "memory").find("vm.overcommit_memory is 2"),
            std::string::npos);
}

TEST(MemoryCheck, SharedMemory) {
  TextMachine machine = with_memory();
  machine.spaces["/dev/shm"] = {.total = 67'108'864, .free = 67'108'864};
  EXPECT_TRUE(about(check_memory(machine), "shm").starts_with("warn /dev/shm has 67.1 MB"));
  machine.spaces["/dev/shm"] = {.total = 12'000'000'000, .free = 10'000'000};
  EXPECT_NE(about(check_memory(machine), "shm").find("remove what dead jobs have left"),
            std::string::npos);
  machine.spaces.clear();
  EXPECT_TRUE(about(check_memory(machine), "shm").starts_with("warn there is no /dev/shm"));
}

TEST(ControlGroup, VersionOneAndContainers) {
  TextMachine machine;
  machine.files["/proc/self/cgroup"] =
      "12:cpu,cpuacct:/job\n4:memory:/outside/job\n0::/\nnonsense\n";
  machine.files["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = "2000000000\n";
  machine.files["/sys/fs/cgroup/memory/memory.usage_in_bytes"] = "7\n";
  machine.files["/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us"] = "150000\n";
  machine.files["/sys/fs/cgroup/cpu/job/cpu.cfs_period_us"] = "100000\n";
  const GroupLimits limits = group_limits(machine);
  EXPECT_EQ(limits.memory, 2e9);
  EXPECT_EQ(limits.used, 7);
  EXPECT_EQ(limits.cores, 1.5);
  machine.files["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = "9223372036854771712\n";
  machine.files["/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us"] = "-1\n";
  EXPECT_EQ(group_limits(machine).memory, std::nullopt);
  EXPECT_EQ(group_limits(machine).cores, std::nullopt);
  EXPECT_EQ(group_limits(TextMachine()).memory, std::nullopt);
}

TextMachine with_cores(const std::string& allowed) {
  TextMachine machine;
  machine.files["/sys/devices/system/cpu/online"] = "0-7\n";
  machine.files["/proc/self/status"] = "Name:\tx\nCpus_allowed_list:\t" + allowed + "\n";
  for (int cpu = 0; cpu < 8; ++cpu) {
    machine.files[concat("/sys/devices/system/cpu/cpu", cpu, "/topology/thread_siblings_list")] =
        concat(cpu % 4, ",", cpu % 4 + 4, "\n");
  }
  machine.files["/sys/devices/system/cpu/cpufreq/boost"] = "1";
  machine.files["/sys/devices/system/node/node0/cpulist"] = "0-3";
  machine.files["/sys/devices/system/node/node1/cpulist"] = "4-7";
  machine.files["/proc/loadavg"] = "0.50 0.1 0.1 1/100 5\n";
  return machine;
}

TEST(CoresCheck, FreeBoundAndLimited) {
  EXPECT_EQ(about(check_cores(with_cores("0-7")), "cores"),
            "ok this process may use 8 processors of 8, 4 cores, 2 NUMA nodes");
  EXPECT_TRUE(about(check_cores(with_cores("0,4")), "cores")
                  .starts_with("warn this process may use 2 processors of 8, 4 cores, 2 NUMA "
                               "nodes: it is bound to 0,4 -> "));
  TextMachine machine = with_cores("0-7");
  machine.files["/proc/self/cgroup"] = "0::/\n";
  machine.files["/sys/fs/cgroup/cpu.max"] = "150000 100000\n";
  EXPECT_NE(
      about(check_cores(machine), "cores").find("warn the control group gives the time of 1.5"),
      std::string::npos);
  machine.files["/sys/fs/cgroup/cpu.max"] = "max 100000\n";
  EXPECT_EQ(worst_of(check_cores(machine)), Verdict::kOk);
  machine.files["/proc/loadavg"] = "35.1 0.1 0.1 1/100 5\n";
  EXPECT_NE(about(check_cores(machine), "cores").find("warn 35.1 processes want the 8 processors"),
            std::string::npos);
  EXPECT_EQ(worst_of(check_cores(TextMachine())), Verdict::kOk);
}

}  // namespace
}  // namespace tessera
