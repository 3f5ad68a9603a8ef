#include "launcher/cpu_topology.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "kernels/core/error.h"
#include "tests/checkpoint/sample_run.h"

namespace tessera {
namespace {

/// Files as the kernel has them: `domains` of `cores` of two hardware threads each, those of a core
/// as far apart as can be.
void describe(const std::filesystem::path& system, int domains, int cores) {
  const int all = domains * cores;
  for (int thread = 0; thread < 2 * all; ++thread) {
    const std::string name = concat("cpu", thread);
    const auto topology = system / "cpu" / name / "topology";
    std::filesystem::create_directories(topology);
    std::ofstream(topology / "thread_siblings_list") << thread % all << "," << thread % all + all;
    std::filesystem::create_directories(system / "node" / concat("node", thread % all / cores) /
                                        name);
  }
}

std::vector<int> first(int threads) {
  std::vector<int> all;
  for (int thread = 0; thread < threads; ++thread) all.push_back(thread);
  return all;
}

TEST(CpuTopology, HardwareThreadsShareACore) {
  const support::TemporaryDirectory place;
  describe(place.path(), 2, 6);
  EXPECT_EQ(cpu_topology(first(24), place.path()), (CpuTopology{12, 2, 6}));
  EXPECT_EQ(cpu_topology(first(12), place.path()), (CpuTopology{12, 2, 6})) << "one of each core";
}

TEST(CpuTopology, OnlyWhatThisProcessMayUseCounts) {
  const support::TemporaryDirectory place;
  describe(place.path(), 2, 6);
  EXPECT_EQ(cpu_topology(first(8), place.path()), (CpuTopology{8, 2, 2}));
  EXPECT_EQ(cpu_topology({6, 7, 18}, place.path()), (CpuTopology{2, 1, 2}));
}

TEST(CpuTopology, WithoutADescriptionEachThreadIsACore) {
  const support::TemporaryDirectory place;
  EXPECT_EQ(cpu_topology(first(3), place.path()), (CpuTopology{3, 1, 3}));
  EXPECT_EQ(cpu_topology({}, place.path()), CpuTopology{});
  EXPECT_GE(cpu_topology().cores, 1);
}

}  // namespace
}  // namespace tessera
