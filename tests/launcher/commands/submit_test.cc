#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "kernels/core/error.h"
#include "launcher/commands/commands.h"
#include "launcher/sbatch.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

std::string read(const fs::path& file) {
  std::ifstream in(file);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// An empty directory that is the current one and the whole PATH, with programs of the test's own
/// in place of Slurm's.
class Submit : public testing::Test {
 protected:
  Submit() : path_(std::getenv("PATH")) {
    fs::create_directories(folder_ / "bin");
    fs::current_path(folder_);
    setenv("PATH", (folder_ / "bin").c_str(), 1);
    write_job("nodes: 2\ntasks_per_node: 2\ntime: '01:00:00'\n");
  }
  ~Submit() override {
    setenv("PATH", path_.c_str(), 1);
    fs::current_path("/");
    fs::remove_all(folder_);
  }

  void write_job(const std::string& text) { std::ofstream("job.textproto") << text; }

  void write_program(const std::string& name, const std::string& body) {
    const fs::path file = folder_ / "bin" / name;
    std::ofstream(file) << "#!/bin/sh\n" << body << "\n";
    fs::permissions(file, fs::perms::owner_all);
  }

  /// Standard output, or the error.
  std::string submit(std::vector<std::string> more = {}) {
    std::vector<std::string> arguments{SOURCE_ROOT "/configs/tiny.textproto", "--job",
                                       "job.textproto", "--set", "run_dir=\"runs/x\""};
    arguments.insert(arguments.end(), more.begin(), more.end());
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    std::string thrown;
    code_ = ExitCode::kFinished;
    try {
      EXPECT_EQ(run_submit(arguments), 0);
    } catch (const Error& error) {
      code_ = error.code();
      thrown = error.what();
    }
    log_ = testing::internal::GetCapturedStderr();
    return testing::internal::GetCapturedStdout() + thrown;
  }

  const fs::path folder_ = fs::temp_directory_path() / concat("tessera_submit_test_", getpid());
  std::string path_;
  ExitCode code_ = ExitCode::kFinished;
  std::string log_;
};

TEST_F(Submit, DryRunPrintsTheScriptAndTouchesNothing) {
  const std::string script = submit({"--dry-run", "--steps", "7"});
  EXPECT_TRUE(script.starts_with("#!/bin/bash\n#SBATCH --job-name=x\n#SBATCH --nodes=2\n"))
      << script;
  EXPECT_NE(script.find(concat("train_options=('", SOURCE_ROOT,
                               "/configs/tiny.textproto' '--set' "
                               "'run_dir=\"runs/x\"' '--steps' '7')")),
            std::string::npos)
      << script;
  EXPECT_FALSE(fs::exists("runs"));
}

TEST_F(Submit, KeepsTheScriptAndPrintsTheNumberOfTheJob) {
  write_program("sbatch", "echo \"$@\" >> asked; echo '17;east'");
  EXPECT_EQ(submit(), "17\n");
  const fs::path script = folder_ / "runs/x/slurm/x.sh";
  EXPECT_EQ(read("asked"), concat("--parsable ", script.string(), "\n"));
  EXPECT_NE(log_.find(concat("submitted job 17 as x; it prints to ", folder_.string(),
                             "/runs/x/slurm, its script is ", script.string())),
            std::string::npos)
      << log_;
  EXPECT_EQ(read(script), submit({"--dry-run"}));
}

TEST_F(Submit, QueuesAllLivesOfAChain) {
  write_job("nodes: 1 tasks_per_node: 2 time: '01:00:00' go_on: SINGLETON restarts: 2");
  write_program("sbatch", "echo \"$@\" >> asked; echo $((16 + $(/usr/bin/wc -l < asked)))");
  EXPECT_EQ(submit(), "17\n");
  const std::string words = concat("--parsable ", (folder_ / "runs/x/slurm/x.sh").string());
  EXPECT_EQ(read("asked"), concat(words, " 1 3\n", words, " 2 3 17\n", words, " 3 3 17\n"));
  EXPECT_NE(log_.find("submitted job 17 as x and 2 that follow it; it prints to "),
            std::string::npos)
      << log_;
  // A limit on queued jobs is no reason to give up those that are queued.
  write_program("sbatch",
                "[ $3 != 3 ] || { echo 'sbatch: error: too many' >&2; exit 1; }; echo 18");
  EXPECT_EQ(submit(), "18\n");
  EXPECT_NE(log_.find("warning: only 2 of 3 jobs are queued: sbatch refuses the job: too many"),
            std::string::npos)
      << log_;
}

TEST_F(Submit, DoesNotTrainARunTwiceAtOnce) {
  write_program("sbatch", "echo 17");
  write_program("squeue", "[ \"$3\" = --jobs=17 ] && echo '17 (RUNNING)'");
  EXPECT_EQ(submit(), "17\n");
  EXPECT_EQ(submit(), concat(folder_.string(), "/runs/x is trained by job 17 (RUNNING) already; ",
                             "wait for its end, or end it with scancel"));
  EXPECT_EQ(code_, ExitCode::kUsage);
  write_program("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1");
  EXPECT_EQ(submit(), "17\n");
}

TEST_F(Submit, AsksSlurmForATest) {
  write_program("sbatch",
                "[ $1 = --test-only ] && /bin/cat $2 > tested; echo 'sbatch: Job 3 to start' >&2");
  EXPECT_EQ(submit({"--test"}), "sbatch: Job 3 to start\n");
  EXPECT_EQ(read("tested"), submit({"--dry-run"}));
  EXPECT_FALSE(fs::exists("runs"));
}

TEST_F(Submit, PassesOnWhatSbatchSays) {
  EXPECT_EQ(submit(),
            "cannot start sbatch: No such file or directory; is it installed and in PATH? Submit "
            "where the cluster is used from, with Slurm in PATH, or print the script with "
            "--dry-run");
  EXPECT_EQ(code_, ExitCode::kUsage);
  write_program("sbatch",
                "echo 'sbatch: error: invalid partition specified: nope\nsbatch: error: "
                "Batch job submission failed: Invalid partition name specified' >&2; exit 1");
  EXPECT_EQ(submit(),
            "sbatch refuses the job: invalid partition specified: nope; Invalid partition "
            "name specified; set partition to one that sinfo --summarize lists");
  EXPECT_EQ(code_, ExitCode::kUsage);
  write_program("sbatch",
                "echo 'sbatch: error: Batch job submission failed: Unable to contact "
                "slurm controller (connect failure)' >&2; exit 1");
  EXPECT_EQ(submit(),
            "sbatch refuses the job: Unable to contact slurm controller (connect "
            "failure); ask again later; scontrol ping says whether it is up");
  EXPECT_EQ(code_, ExitCode::kTryAgain);
}

TEST_F(Submit, ReducesWhatSbatchSaysToItsReason) {
  EXPECT_EQ(sbatch_reason(""), "it does not say why");
  EXPECT_EQ(sbatch_reason("allocation failure: Requested node configuration is not available\n"),
            "Requested node configuration is not available");
  EXPECT_EQ(way_out("something new"),
            "mend the job file; --dry-run prints the script, and --test tries it");
}

TEST_F(Submit, ChecksTheMeshBeforeAnythingIsSubmitted) {
  write_program("sbatch", "touch asked");
  EXPECT_EQ(
      submit({"--set", "mesh.tensor=3"}),
      "job.textproto: 2 nodes x 2 tasks are 4 ranks, which the configuration does not fit:\n"
      "mesh: data 1 x expert 1 x sequence 1 x tensor 3 needs 3 ranks, the job has 4; the nearest "
      "mesh that fits is data 1 x expert 1 x sequence 1 x tensor 4, or start 3 ranks");
  EXPECT_EQ(submit({"--set", "runtime.device=GPU"}),
            "job.textproto: gpus_per_node is 0, but runtime.device is GPU; set it to 2, the tasks "
            "of a node");
  write_job("nodes: 65536 tasks_per_node: 4096 time: '01:00:00'");
  EXPECT_EQ(submit(),
            "job.textproto: 65536 nodes x 4096 tasks are 268435456 ranks, expected at "
            "most 65536");
  EXPECT_FALSE(fs::exists("asked"));
}

TEST_F(Submit, WarnsOfWhatIsOnlySlow) {
  write_job("nodes: 2 tasks_per_node: 3 gpus_per_node: 4 time: '01:00:00'");
  submit({"--dry-run", "--set", "mesh.tensor=2", "--set", "mesh.data=3", "--set",
          "batch.sequences=3"});
  EXPECT_NE(log_.find("warning: mesh.tensor = 2 does not divide tasks_per_node = 3: some tensor "
                      "groups cross nodes, which is slow"),
            std::string::npos)
      << log_;
  EXPECT_NE(log_.find("warning: gpus_per_node is 4, but runtime.device is CPU: they idle"),
            std::string::npos);
  submit({"--dry-run", "--set", "mesh.data=3", "--set", "mesh.tensor=2", "--set",
          "batch.sequences=3", "--set", "runtime.device=GPU"});
  EXPECT_NE(log_.find("warning: gpus_per_node is 4, but only tasks_per_node = 3 of them are used"),
            std::string::npos)
      << log_;
}

TEST_F(Submit, MakesTheDirectoriesOrSaysWhyNot) {
  write_program("sbatch", "echo 17");
  std::ofstream("runs") << "a file";
  EXPECT_EQ(submit(), concat("cannot write to ", folder_.string(), "/runs/x/slurm: Not a directory",
                             "; the job needs it, choose another run_dir or log_dir"));
  fs::remove("runs");
  write_job("nodes: 2 tasks_per_node: 2 time: '01:00:00' log_dir: 'logs/here'");
  EXPECT_EQ(submit(), "17\n");
  EXPECT_TRUE(fs::is_directory("logs/here"));
}

TEST_F(Submit, NeedsAJob) {
  EXPECT_THROW(run_submit({SOURCE_ROOT "/configs/tiny.textproto"}), Error);
}

}  // namespace
}  // namespace tessera
