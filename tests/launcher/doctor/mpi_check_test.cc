#include <gtest/gtest.h>

#include "launcher/doctor/checks.h"
#include "tests/launcher/doctor/text_machine.h"

namespace tessera {
namespace {

using support::about;
using support::TextMachine;

constexpr const char* kWhere = "sh -c command -v mpirun";

Program program_with(const std::string& mpi, const std::string& pmix = "OpenPMIx 4.2.2 (PMIx") {
  Program program;
  program.mpi = mpi;
  program.mpi_file = "/usr/lib/libmpi.so.40";
  program.pmix = pmix;
  return program;
}

std::string judged(const std::string& library, const std::string& starter) {
  TextMachine machine;
  machine.says(kWhere, "/opt/bin/mpirun\n");
  machine.says("mpirun --version", starter);
  return about(check_mpi(machine, program_with(library)), "mpi");
}

TEST(MpiCheck, LibraryAndStarterBelongTogether) {
  EXPECT_EQ(judged("Open MPI v4.1.4", "mpirun (Open MPI) 4.1.4\n\nReport bugs to\n"),
            "ok the program is linked with Open MPI 4.1.4 (/usr/lib/libmpi.so.40), and the mpirun "
            "in PATH (/opt/bin/mpirun) is the same");
  EXPECT_TRUE(judged("Open MPI v4.1.4", "mpirun (Open MPI) 4.1.6\n")
                  .starts_with("warn the program is linked with Open MPI 4.1.4 "));
}

TEST(MpiCheck, AnotherMpisStarterFails) {
  const std::string text =
      judged("Open MPI v4.1.4", "HYDRA build details:\n    Version:    4.0.2\n");
  EXPECT_EQ(
      text,
      "fail the program is linked with Open MPI 4.1.4 (/usr/lib/libmpi.so.40), but the mpirun "
      "in PATH (/opt/bin/mpirun) is MPICH 4.0.2: every rank would be alone -> put the mpirun "
      "of Open MPI 4.1.4 first in PATH, or build again with the other MPI");
  EXPECT_TRUE(judged("Open MPI v4.1.4", "mpirun (Open MPI) 5.0.3\n").starts_with("fail"));
  EXPECT_TRUE(judged("Open MPI v4.1.4", "Intel(R) MPI Library for Linux* OS, Version 2021.9\n")
                  .starts_with("fail"));
  EXPECT_TRUE(judged("MPICH Version:      4.0.2", "mpirun (Open MPI) 4.1.4\n").starts_with("fail"));
  EXPECT_TRUE(judged("Open MPI v4.1.4", "what is this\n").starts_with("fail"));
}

TEST(MpiCheck, MpichIsKnownButNotSpoken) {
  EXPECT_TRUE(judged("MPICH Version:      4.0.2", "HYDRA build details:\n    Version: 4.0.2\n")
                  .starts_with("warn"));
}

TEST(MpiCheck, NoStarterIsAWarningAndABrokenOneFails) {
  TextMachine machine;
  EXPECT_TRUE(about(check_mpi(machine, program_with("Open MPI v4.1.4")), "mpi")
                  .starts_with("warn the program is linked with Open MPI 4.1.4, and there is no"));
  machine.says(kWhere, "/opt/bin/mpirun\n");
  machine.fails("mpirun --version", 1, "libopen-rte.so.40: cannot open");
  EXPECT_TRUE(about(check_mpi(machine, program_with("Open MPI v4.1.4")), "mpi")
                  .starts_with("fail mpirun --version: it ended with 1: libopen-rte"));
}

TEST(MpiCheck, Pmix) {
  const TextMachine machine;
  const auto pmix = [&](const std::string& said) {
    return about(check_mpi(machine, program_with("Open MPI v4.1.4", said)), "pmix");
  };
  EXPECT_EQ(pmix("OpenPMIx 4.2.2rc2 (PMIx Standard: 4.2, Stable ABI: 0.0)"), "ok PMIx 4.2.2");
  EXPECT_TRUE(pmix("PMIx 2.1.4").starts_with("warn PMIx 2.1.4"));
  EXPECT_TRUE(pmix("").starts_with("ok no library"));
}

TEST(Program, PartsAreReadFromTexts) {
  EXPECT_EQ(nccl_version(22809), "2.28.9");
  EXPECT_EQ(nccl_version(2708), "2.7.8");
  const std::string maps =
      "7f00-7f01 r-xp 00000000 08:01 12 /usr/lib/libmpi_cxx.so.40\n"
      "7f02-7f03 r-xp 00000000 08:01 13                /usr/lib/libmpi.so.40.30.4\n"
      "7f04-7f05 rw-p 00000000 00:00 0 [heap]\n";
  EXPECT_EQ(loaded_file(maps, "libmpi.so"), "/usr/lib/libmpi.so.40.30.4");
  EXPECT_EQ(loaded_file(maps, "libother"), "");
  EXPECT_EQ(loaded_file("", "libmpi.so"), "");
}

}  // namespace
}  // namespace tessera
