#include "launcher/job_config.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"
#include "launcher/job.pb.h"

namespace tessera {
namespace {

const std::string kSmall = "nodes: 2\ntasks_per_node: 8\ntime: \"24:00:00\"\n";

/// What is wrong with kSmall and `more`.
std::string problems_of(const std::string& more, const std::string& text = kSmall) {
  try {
    parse_job_config(text + more, "job");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    return error.what();
  }
  return "";
}

TEST(JobConfig, HasTheDefaultsThatItsCommentsName) {
  const JobConfig job = parse_job_config(kSmall, "job");
  EXPECT_TRUE(job.exclusive());
  EXPECT_EQ(job.restarts(), 50);
  EXPECT_EQ(job.warning(), 360);
  EXPECT_EQ(job.starter(), JobConfig::SRUN);
  EXPECT_EQ(job.go_on(), JobConfig::REQUEUE);
  EXPECT_EQ(parse_job_config(kSmall + "go_on: ARRAY", "job").restarts(), 9);
  EXPECT_EQ(parse_job_config(kSmall + "go_on: SINGLETON restarts: 3", "job").restarts(), 3);
  EXPECT_FALSE(parse_job_config(kSmall + "exclusive: false", "job").exclusive());
}

TEST(JobConfig, EveryFileInSlurmIsOne) {
  EXPECT_EQ(load_job_config(SOURCE_ROOT "/slurm/moe-100b-384gpu.textproto").nodes(), 48);
  EXPECT_EQ(load_job_config(SOURCE_ROOT "/slurm/small.textproto").starter(), JobConfig::MPIRUN);
}

TEST(JobConfig, TellsAllProblemsAtOnceWithTheirPlaces) {
  EXPECT_EQ(problems_of("", ""),
            "job: nodes is missing or 0, expected 1 to 65536\n"
            "job: tasks_per_node is missing or 0, expected 1 to 4096\n"
            "job: time is missing, expected HH:MM:SS or D-HH:MM:SS with 0 to 23 hours and at most "
            "365 days, as 24:00:00 or 1-00:00:00 for a day");
  EXPECT_EQ(problems_of("spare_nodez: 1\nstarter: SLURM\n"),
            "job:4:1: JobConfig has no field \"spare_nodez\"; did you mean \"spare_nodes\"?\n"
            "job:5:10: starter is SLURM; expected one of SRUN, MPIRUN");
  EXPECT_EQ(problems_of("spare_nodes: -1\nrestarts: 10001\nwarning: 65536\n"),
            "job:4:1: spare_nodes is -1, expected 0 to 65536\n"
            "job:5:1: restarts is 10001, expected 0 to 10000\n"
            "job:6:1: warning is 65536, expected 1 to 65535");
}

TEST(JobConfig, ReadsTimesAsSlurmDoesButForTheShortForms) {
  EXPECT_EQ(seconds_of("00:01:30"), 90);
  EXPECT_EQ(seconds_of("24:00:00"), 86400);
  EXPECT_EQ(seconds_of("1-02:00:00"), 26 * 3600);
  EXPECT_EQ(seconds_of("999:00:00"), 999 * 3600);
  for (const char* wrong : {"", "24:00", "60", "1-24:00:00", "00:60:00", "00:00:60", "1:2:3",
                            "00:00:01 ", "00:00:01\n", "-1:00:00", "1-2", "UNLIMITED"}) {
    EXPECT_EQ(seconds_of(wrong), 0) << wrong;
  }
  EXPECT_NE(problems_of("", "nodes: 1 tasks_per_node: 1 time: '24:00'").find("time is \"24:00\""),
            std::string::npos);
  EXPECT_NE(problems_of("", "nodes: 1 tasks_per_node: 1 time: '366-00:00:00'").find("365 days"),
            std::string::npos);
}

TEST(JobConfig, ChecksWhatFieldsSayTogether) {
  EXPECT_EQ(problems_of("gpus_per_node: 4"),
            "job:2:1: tasks_per_node is 8, expected at most gpus_per_node = 4: each rank has a GPU "
            "of its own");
  EXPECT_EQ(problems_of("gpu_type: 'h200'"),
            "job:4:1: gpu_type is \"h200\", but gpus_per_node is 0: set both or neither");
  EXPECT_EQ(problems_of("spare_nodes: 1 starter: MPIRUN"),
            "job:4:1: spare_nodes is 1, expected 0 with starter MPIRUN, which does not notice a "
            "lost node for minutes: take SRUN");
  EXPECT_EQ(problems_of("warning: 60", "nodes: 1 tasks_per_node: 1 time: '00:01:00'\n"),
            "job:2:1: warning is 60, expected less than time = 00:01:00, which is 60 s");
  EXPECT_EQ(problems_of("go_on: ARRAY restarts: 0"),
            "job:4:14: restarts is missing or 0, expected 1 to 999");
}

// Lines for sbatch have rules of their own for quotes, blanks and #, so nothing of that gets there.
TEST(JobConfig, RefusesWhatCouldBecomeAnotherLineOrWord) {
  for (const char* field : {"name", "gpu_type", "memory_per_node", "partition", "account", "qos",
                            "constraint", "network"}) {
    for (const char* value : {"", "a b", "a\\nb", "a;b", "$(a)", "`a`", "a'b", "a\\\"b", "a#b",
                              "a\\\\b", "../a b", "ä", "a%j"}) {
      const std::string found = problems_of(std::string(field) + ": \"" + value + "\"");
      EXPECT_NE(found.find(std::string(field) + " is "), std::string::npos) << field << value;
    }
    EXPECT_NE(problems_of(std::string(field) + ": \"" + std::string(1001, 'a') + "\""), "");
  }
  for (const char* good :
       {"partition: 'gpu,debug'", "constraint: '[rack1*2|rack2]&ib'", "memory_per_node: '900G'",
        "memory_per_node: '0'", "network: 'ib0,ib1'", "account: 'lab-1.x_y'"}) {
    EXPECT_EQ(problems_of(good), "") << good;
  }
  // One word of the shell each, in quotes: only what ends a line is too much.
  for (const char* field : {"starter_options", "container", "log_dir"}) {
    EXPECT_EQ(problems_of(std::string(field) + ": \"it's; $(a) `b` # \\\"\""), "") << field;
    for (const char* value : {"", "a\\nb", "a\\rb", "a\\tb", "\\x7f"}) {
      EXPECT_NE(problems_of(std::string(field) + ": \"" + value + "\""), "") << field << value;
    }
  }
}

TEST(JobConfig, TakesMoreOptionsOfSbatchButNoneOfItsOwnFields) {
  EXPECT_EQ(problems_of("sbatch: ['--reservation=night', '--mail-type=FAIL,END', '--reboot']"), "");
  EXPECT_EQ(problems_of("sbatch: ['--reboot', '--nodes=3']"),
            "job:4:22: sbatch[1] is \"--nodes=3\", expected none that nodes and spare_nodes sets: "
            "set that field");
  for (const char* wrong : {"-N3", "--", "reservation", "--a b", "--a=b c", "--a='b'", "--a=#b",
                            "--a=\\nb", "--wrap=a;b", "--A=b"}) {
    EXPECT_NE(problems_of(std::string("sbatch: \"") + wrong + "\"")
                  .find("expected one long option of sbatch"),
              std::string::npos)
        << wrong;
  }
}

TEST(JobConfig, TakesVariablesByName) {
  EXPECT_EQ(problems_of("environment: ['A=', '_b1=x y=$z\\'']"), "");
  for (const char* wrong : {"", "A", "=b", "1A=b", "A B=c", "A;b=c", "A-B=c"}) {
    EXPECT_NE(problems_of(std::string("environment: \"") + wrong + "\"")
                  .find("expected NAME=value with a name"),
              std::string::npos)
        << wrong;
  }
  EXPECT_NE(problems_of("environment: 'A=b\\nc'"), "");
  std::string many;
  for (int i = 0; i < 101; ++i) many += "environment: 'A=b' ";
  EXPECT_EQ(problems_of(many), "job: environment has 101 entries, expected at most 100");
}

}  // namespace
}  // namespace tessera
