#include "launcher/mpirun.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"

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
  EXPECT_EQ(
      mpirun_command({.ranks = 2, .cores = 8}, {"p", "x"}),
      (Words{"mpirun", "-q", "-np", "2", "--map-by", "slot:PE=4", "--bind-to", "core", "p", "x"}));
  EXPECT_EQ(mpirun_command({.ranks = 9, .cores = 8, .root = true}, {"p"}),
            (Words{"mpirun", "-q", "-np", "9", "--allow-run-as-root", "--map-by", "slot",
                   "--bind-to", "none", "--oversubscribe", "p"}));
  EXPECT_EQ(mpirun_command({.ranks = 2, .cores = 8, .bind = false}, {"p"})[5], "slot");
}

TEST(Mpirun, HostsAreFilledInOrder) {
  EXPECT_EQ(mpirun_command({.ranks = 12, .hosts = {{"a", 8}, {"b", 4}}, .cores = 16}, {"p"}),
            (Words{"mpirun", "-q", "-np", "12", "--host", "a:8,b:4", "--map-by", "slot:PE=2",
                   "--bind-to", "core", "p"}));
}

}  // namespace
}  // namespace tessera
