#include "launcher/mpirun.h"
#include "launcher/shell.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"
#include "launcher/ssh.h"

namespace tessera {
namespace {

using Words = std::vector<std::string>;

TEST(Mpirun, HostsAreNamesWithSlots) {
  EXPECT_EQ(parse_hosts("a:8,b.c-1:16,d"),
            (std::vector<HostSlots>{{"a", 8}, {"b.c-1", 16}, {"d", 1}}));
  for (const char* wrong :
       {"", ",", "a:", "a:0", "a:x", "a:8,", "-o:1", "a b:1", "a:5000", "a;b", "a:1,a:2"}) {
    try {
      (void)parse_hosts(wrong);
      ADD_FAILURE() << wrong;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kUsage);
      EXPECT_TRUE(std::string(error.what()).starts_with("--hosts: ")) << error.what();
    }
  }
}

TEST(Mpirun, RanksShareTheCoresOfAHost) {
  const CpuTopology eight{8, 1, 8};
  EXPECT_EQ(
      mpirun_command({.ranks = 2, .cpus = eight}, {"p", "x"}),
      (Words{"mpirun", "-q", "-np", "2", "--map-by", "slot:PE=4", "--bind-to", "core", "p", "x"}));
  EXPECT_EQ(mpirun_command({.ranks = 9, .cpus = eight, .root = true}, {"p"}),
            (Words{"mpirun", "-q", "-np", "9", "--allow-run-as-root", "--map-by", "slot",
                   "--bind-to", "none", "--oversubscribe", "p"}));
  EXPECT_EQ(mpirun_command({.ranks = 2, .cpus = eight, .bind = false}, {"p"})[5], "slot");
}

TEST(Mpirun, CoresOfARankAreInOneNumaDomain) {
  const auto mapping = [](int ranks, const CpuTopology& cpus) {
    return mpirun_command({.ranks = ranks, .cpus = cpus}, {"p"})[5];
  };
  EXPECT_EQ(mapping(6, {20, 2, 10}), "numa:PE=3");  // slot:PE=3 would give rank 3 the cores 9 to 11
  EXPECT_EQ(mapping(5, {20, 2, 10}), "numa:PE=3");  // of 4 cores each only two ranks fit a domain
  EXPECT_EQ(mapping(8, {24, 4, 6}), "numa:PE=3");
  EXPECT_EQ(mapping(2, {24, 4, 6}), "slot:PE=12");  // two whole domains each
  EXPECT_EQ(mapping(3, {24, 4, 6}), "slot:PE=6");
  EXPECT_EQ(mapping(9, {10, 2, 2}), "slot:PE=1");  // uneven domains
  EXPECT_EQ(mapping(11, {10, 2, 5}), "slot");
}

TEST(Mpirun, HostsAreFilledInOrder) {
  const Words words = mpirun_command({.ranks = 12,
                                      .hosts = {{"a", 8}, {"b", 4}},
                                      .cpus = {16, 1, 16},
                                      .environment = {"X", "Y=1"}},
                                     {"p"});
  EXPECT_EQ(Words(words.begin(), words.begin() + 7),
            (Words{"mpirun", "-q", "-np", "12", "--host", "a:8,b:4", "--mca"}));
  EXPECT_EQ(Words(words.end() - 9, words.end()),
            (Words{"-x", "X", "-x", "Y=1", "--map-by", "slot:PE=2", "--bind-to", "core", "p"}));
  EXPECT_EQ(to_text({{"a", 8}, {"b", 4}}), "a:8,b:4");
}

TEST(Mpirun, MessagesGoOverTheInterface) {
  const std::string line = shell_line(mpirun_command(
      {.ranks = 2, .hosts = {{"a", 1}, {"b", 1}}, .interface = "eth1", .network = "10.0.0.0/24"},
      {"p"}));
  for (const char* part : {"--mca btl_tcp_if_include eth1 -x NCCL_SOCKET_IFNAME==eth1",
                           "--mca oob_tcp_if_include 10.0.0.0/24", "'-o BatchMode=yes -o "}) {
    EXPECT_NE(line.find(part), std::string::npos) << line;
  }
}

}  // namespace
}  // namespace tessera
