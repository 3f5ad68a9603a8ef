#include <gtest/gtest.h>

#include <random>

#include "launcher/doctor/checks.h"
#include "launcher/doctor/hosts_check.h"
#include "launcher/doctor/pair_probe.h"
#include "launcher/doctor/storage_check.h"
#include "launcher/doctor/world_check.h"
#include "tests/launcher/doctor/text_machine.h"

namespace tessera {
namespace {

using support::TextMachine;

// A machine with something to say to every check.
TextMachine talkative() {
  TextMachine machine;
  machine.files = {
      {"/proc/self/limits",
       "Max open files            20000   20000   files\n"
       "Max locked memory         8388608 8388608 bytes\n"},
      {"/proc/meminfo", "MemTotal: 24684096 kB\nMemAvailable: 20000000 kB\n"},
      {"/proc/self/cgroup", "12:cpu,cpuacct:/job\n4:memory:/outside/job\n0::/a/b\n"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000000\n"},
      {"/sys/fs/cgroup/a/cpu.max", "150000 100000\n"},
      {"/sys/fs/cgroup/a/memory.events", "oom_kill 3\n"},
      {"/sys/devices/system/cpu/online", "0-7\n"},
      {"/sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0,4\n"},
      {"/proc/self/status", "Cpus_allowed_list:\t0-3,5\n"},
      {"/proc/loadavg", "0.50 0.1 0.1 1/100 5\n"},
      {"/proc/self/mounts", "/dev/sda1 / ext4 rw 0 0\ns:/my\\040data /data nfs4 rw,soft 0 0\n"},
      {"/sys/class/net/eth0/mtu", "1500\n"},
      {"/sys/class/net/eth0/speed", "10000\n"},
      {"/sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n"},
  };
  machine.interface_addresses = {{"eth0", "10.0.0.1", 24}};
  machine.says("sh -c command -v mpirun", "/usr/bin/mpirun\n");
  machine.says("mpirun --version", "mpirun (Open MPI) 4.1.4\n");
  machine.says("scontrol show config", "SLURM_VERSION = 22.05.8\nSlurmdTimeout = 300 sec\n");
  machine.says("srun --mpi=list", "MPI plugin types are...\n\tnone\n\tpmix\n");
  machine.says(
      "nvidia-smi --query-gpu=index,name,driver_version,memory.total,memory.used,"
      "ecc.errors.uncorrected.volatile.total --format=csv,noheader,nounits",
      "0, NVIDIA H100, 535.104, 81559, 3, 0\n1, NVIDIA H100, 535.104, 81559, 3, 0\n");
  machine.says("nvidia-smi topo -p2p r", " \tGPU0\tGPU1\n GPU0\tX\tOK\n GPU1\tOK\tX\n");
  machine.says("ompi_info --parsable --param btl tcp --level 9",
               "mca:btl:tcp:param:btl_tcp_if_include:value:eth0,10.0.0.0/8\n");
  return machine;
}

using Random = std::minstd_rand;

// Some bytes are lost, doubled, or become others.
void spoil(std::string& text, Random& random) {
  for (int i = 0; i < 3 && !text.empty(); ++i) {
    const size_t place = random() % text.size();
    static const std::string kOthers = "\n\0 ,:-/=9\xff[";
    switch (random() % 4) {
      case 0:
        text.erase(place, random() % 9);
        break;
      case 1:
        text.insert(place, text.substr(random() % text.size(), random() % 20));
        break;
      case 2:
        text[place] = kOthers[random() % kOthers.size()];
        break;
      default:
        text.resize(place);
    }
  }
}

TEST(Nonsense, FromAMachineIsJudgedLikeAnythingElse) {
  Random random(7);
  for (int round = 0; round < 1000; ++round) {
    TextMachine machine = talkative();
    for (auto& [path, text] : machine.files) spoil(text, random);
    for (auto& [command, said] : machine.commands) spoil(said.output, random);
    Program program;
    program.mpi = "Open MPI v4.1.4";
    program.pmix = "PMIx 4.2.2";
    spoil(program.mpi, random);
    spoil(program.pmix, random);
    Findings all;
    for (const Findings& findings :
         {check_mpi(machine, program), check_slurm(machine), check_gpus(machine, program),
          check_network(machine, program, "eth0"), check_limits(machine), check_memory(machine),
          check_cores(machine)}) {
      EXPECT_FALSE(findings.empty());
      append(all, findings);
    }
    EXPECT_FALSE(lines_of(all).empty());
  }
}

TEST(Nonsense, FromOtherProcessesToo) {
  Random random(11);
  const std::string pairs =
      "pairs: rank 0 on a\npairs: begin 0 1\npairs: begin 1 0\n"
      "pairs: end 0 1 1e-05 1e+09 0.1\n";
  const std::string storage =
      "storage: path /data\nstorage: space 1000 500 10 9\n"
      "storage: syncs 812\nstorage: rate 1e9\nstorage: done 1\n";
  Checkup checkup{.host = "a", .program = {}};
  checkup.program.digest = "0123";
  checkup.numbers = {{"cores", 8}};
  checkup.findings = {{Verdict::kWarn, "memory", "full", "end it"}};
  const auto spoiled = [&](std::string text) {
    spoil(text, random);
    return CapturedCommand{.output = text, .errors = text, .trouble = ""};
  };
  for (int round = 0; round < 1000; ++round) {
    EXPECT_FALSE(judge_world(spoiled(pairs)).empty());
    EXPECT_FALSE(judge_pairs(spoiled(pairs), 2, 1e9).empty());
    EXPECT_FALSE(check_storage(talkative(), "/data", spoiled(storage)).empty());
    const std::vector<HostCheckup> hosts{judge_answer({"a", 8}, spoiled(to_json(checkup))),
                                         judge_answer({"b", 8}, spoiled(to_json(checkup)))};
    EXPECT_FALSE(compare_hosts(hosts, checkup.program).empty());
    (void)gathered(hosts);
  }
}

}  // namespace
}  // namespace tessera
