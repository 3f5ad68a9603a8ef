#include <gtest/gtest.h>

#include "launcher/doctor/checks.h"
#include "tests/launcher/doctor/text_machine.h"

namespace tessera {
namespace {

using support::about;
using support::TextMachine;

constexpr const char* kConfig = "scontrol show config";

constexpr const char* kTypes =
    "MPI plugin types are...\n\tnone\n\tpmi2\n\tpmix\n"
    "specific pmix plugin versions available: pmix_v4\n";

std::string config(const std::string& mpi, const std::string& timeout = "60 sec",
                   const std::string& requeue = "1") {
  return "Configuration data as of 2026-01-01T00:00:00\n"
         "ClusterName             = lab\n"
         "JobRequeue              = " +
         requeue + "\nMpiDefault              = " + mpi + "\nSlurmdTimeout           = " + timeout +
         "\nSLURM_VERSION           = 22.05.8\n\nSlurmctld(primary) at ctl is UP\n";
}

std::string judged(const std::string& settings, const std::string& types) {
  TextMachine machine;
  machine.says(kConfig, settings);
  machine.says("srun --mpi=list", types);
  return about(check_slurm(machine), "slurm");
}

TEST(SlurmCheck, NotInstalledIsWell) {
  EXPECT_EQ(about(check_slurm(TextMachine()), "slurm"), "ok not installed; mpirun starts jobs");
}

TEST(SlurmCheck, AGoodCluster) {
  EXPECT_EQ(judged(config("pmix"), kTypes),
            "ok Slurm 22.05.8, cluster lab, MPI types none, pmi2, pmix and pmix_v4, default pmix");
}

TEST(SlurmCheck, NoControllerIsAWarning) {
  TextMachine machine;
  machine.fails(kConfig, 1, "scontrol: fatal: Could not establish a configuration source");
  EXPECT_TRUE(about(check_slurm(machine), "slurm")
                  .starts_with("warn installed, but finds no cluster: it ended with 1: scontrol"));
  machine.environment["SLURM_CONF"] = "/etc/other.conf";
  EXPECT_NE(about(check_slurm(machine), "slurm").find("is SLURM_CONF=/etc/other.conf right"),
            std::string::npos);
  EXPECT_TRUE(judged(config("pmix") + "Slurmctld(backup) at ctl2 is DOWN\n", kTypes)
                  .find("warn Slurmctld(backup) at ctl2 is DOWN") != std::string::npos);
}

TEST(SlurmCheck, WhatSrunCanBe) {
  EXPECT_NE(judged(config("none"), kTypes).find("always start ranks with srun --mpi=pmix"),
            std::string::npos);
  const std::string without =
      judged(config("pmi2"), "srun: MPI types are...\nsrun: none\nsrun: pmi2\n");
  EXPECT_TRUE(without.starts_with("warn Slurm 22.05.8, cluster lab, MPI types none and pmi2,"))
      << without;
  EXPECT_NE(without.find("without pmix"), std::string::npos) << without;
  EXPECT_NE(judged(config("pmix"), "").find("MPI types none,"), std::string::npos);
  EXPECT_NE(judged(config("pmix"), "srun: error: fetch_config: DNS SRV lookup failed\n")
                .find("MPI types none,"),
            std::string::npos);
}

TEST(SlurmCheck, SettingsThatMakeFaultsLong) {
  const std::string late = judged(config("pmix", "300 sec"), kTypes);
  EXPECT_NE(late.find("warn SlurmdTimeout is 300 s"), std::string::npos) << late;
  const std::string stays = judged(config("pmix", "60 sec", "0"), kTypes);
  EXPECT_NE(stays.find("warn JobRequeue is 0"), std::string::npos) << stays;
}

TEST(SlurmCheck, NonsenseIsNoReasonToFail) {
  for (const char* text : {"", "=\n=\n", "SLURM_VERSION\nClusterName =\n"}) {
    EXPECT_NE(worst_of([&] {
                TextMachine machine;
                machine.says(kConfig, text);
                return check_slurm(machine);
              }()),
              Verdict::kFail);
  }
}

}  // namespace
}  // namespace tessera
