#include "launcher/job_script.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <sstream>

#include "kernels/core/error.h"
#include "launcher/captured_command.h"
#include "launcher/job.pb.h"
#include "launcher/job_config.h"
#include "launcher/shell.h"

namespace tessera {
namespace {

const std::string kSmall = "nodes: 2\ntasks_per_node: 8\ntime: \"24:00:00\"\n";

JobRun small_run() {
  return {.program = "/opt/tessera/bin/tessera",
          .train_options = {"/data/a b.textproto", "--set", "seed=3"},
          .directory = "/data",
          .run_dir = "/data/runs/x"};
}

std::string script_of(const std::string& more, const JobRun& run = small_run()) {
  JobConfig job = parse_job_config(kSmall + more, "job");
  complete_job(job, run);
  return job_script(job, run);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

/// What bash finds in `expression` after the settings of the script, without running the rest.
std::string evaluated(const std::string& script, const std::string& expression) {
  const size_t begin = script.find("\nname=") + 1;
  const std::string settings = script.substr(begin, script.find("\nsay()") - begin);
  return capture_command({"bash", "-c", settings + "\nprintf '<%s>' " + expression}).output;
}

TEST(ShellWord, IsOneWordWhateverItHolds) {
  for (const char* word : {"", "plain", "a b", "it's", "$(touch x)", "`a`", "\\", "\"", "#",
                           "a;b&c|d>e", "*", "~", "!", "\t", "ä"}) {
    const std::string command = "printf '<%s>' " + shell_word(word);
    EXPECT_EQ(capture_command({"bash", "-c", command}).output, concat("<", word, ">"));
  }
  for (const std::string& word : std::vector<std::string>{"a\nb", "a\rb", std::string(1, '\0')}) {
    EXPECT_THROW(shell_word(word), Error);
  }
  EXPECT_EQ(shell_array("x", {"a", "b c"}), "x=('a' 'b c')");
  EXPECT_EQ(shell_array("x", {}), "x=()");
}

TEST(JobScript, AsksForWhatTheFieldsSay) {
  EXPECT_NE(script_of("").find(R"(#!/bin/bash
#SBATCH --job-name=x
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --time=24:00:00
#SBATCH --exclusive
#SBATCH --signal=USR1@360
#SBATCH --requeue
#SBATCH --chdir=/data
#SBATCH --open-mode=append
#SBATCH --output=/data/runs/x/slurm/%x-%j.out
#
)"),
            std::string::npos)
      << script_of("");
  const std::string all = script_of(R"(
    name: "big" spare_nodes: 1 gpus_per_node: 8 gpu_type: "h200" cpus_per_task: 12
    memory_per_node: "900G" partition: "gpu" account: "lab" qos: "high" constraint: "ib&nvme"
    exclusive: false sbatch: "--reservation=night" sbatch: "--nice" warning: 100
    log_dir: "logs" restarts: 7)");
  EXPECT_NE(all.find(R"(#!/bin/bash
#SBATCH --job-name=big
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=8
#SBATCH --time=24:00:00
#SBATCH --gpus-per-node=h200:8
#SBATCH --cpus-per-task=12
#SBATCH --mem=900G
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH --qos=high
#SBATCH --constraint=ib&nvme
#SBATCH --signal=USR1@100
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --chdir=/data
#SBATCH --open-mode=append
#SBATCH --output=/data/logs/%x-%j.out
#SBATCH --reservation=night
#SBATCH --nice
#
)"),
            std::string::npos)
      << all;
  EXPECT_EQ(evaluated(all, "$nodes $ranks $warning $limit $most_restarts $seconds_to_answer"),
            "<2><16><100><86400><7><60>");
  EXPECT_EQ(evaluated(all, R"("${starter_options[@]}")"),
            "<--cpus-per-task=12><--cpu-bind=cores><--gpu-bind=none><--overlap>");
}

TEST(JobScript, QueuesLivesWhereRequeueIsForbidden) {
  const std::string array = script_of("go_on: ARRAY restarts: 4");
  EXPECT_NE(array.find("\n#SBATCH --no-requeue\n#SBATCH --array=1-5%1\n"), std::string::npos);
  EXPECT_NE(array.find("/%x-%A_%a.out\n"), std::string::npos);
  const std::string singleton = script_of("go_on: SINGLETON");
  EXPECT_NE(singleton.find("\n#SBATCH --no-requeue\n#SBATCH --dependency=singleton\n"),
            std::string::npos);
}

TEST(JobScript, StartsRanksAsAsked) {
  const std::string srun = script_of(
      "gpus_per_node: 8 cpus_per_task: 12 starter_options: '--mpi=pmix_v4' network: 'ib0' "
      "container: ['apptainer', 'exec', 'a b.sif'] environment: ['A=it\\'s $HOME', 'B=']");
  EXPECT_EQ(evaluated(srun, R"("${starter_options[@]}")"),
            "<--cpus-per-task=12><--cpu-bind=cores><--gpu-bind=none><--mpi=pmix_v4>");
  EXPECT_EQ(evaluated(srun, R"("${tessera[@]}")"),
            "<apptainer><exec><a b.sif></opt/tessera/bin/tessera>");
  EXPECT_EQ(evaluated(srun, R"("${train_options[@]}")"), "</data/a b.textproto><--set><seed=3>");
  EXPECT_EQ(evaluated(srun, R"("$A" "$B" "$OMPI_MCA_btl_tcp_if_include" )"
                            R"("$OMPI_MCA_oob_tcp_if_include" "$NCCL_SOCKET_IFNAME")"),
            "<it's $HOME><><ib0><ib0><ib0>");
  const std::string mpirun = script_of("starter: MPIRUN cpus_per_task: 4");
  EXPECT_EQ(evaluated(mpirun, R"("${starter_options[@]}")"),
            "<--map-by><ppr:8:node:PE=4><--bind-to><core>");
  EXPECT_NE(mpirun.find("\n#SBATCH --signal=B:USR1@360\n"), std::string::npos);
  JobRun by_root = small_run();
  by_root.root = true;
  EXPECT_EQ(evaluated(script_of("starter: MPIRUN", by_root), R"("${starter_options[@]}")"),
            "<--map-by><ppr:8:node><--bind-to><none><--allow-run-as-root>");
}

TEST(JobScript, TakesNothingInItsFieldsForItself) {
  JobRun run = small_run();
  run.train_options = {"@settings@", "'; exit 3 #", "--set", "run_dir=\"a'b\""};
  run.run_dir = "/data/it's @start@";
  const std::string script =
      script_of("log_dir: '/logs' starter_options: '@directives@' environment: 'A=@lives@'", run);
  EXPECT_EQ(evaluated(script, R"("${train_options[@]}" "$run_dir" "$A" "${starter_options[@]}")"),
            "<@settings@><'; exit 3 #><--set><run_dir=\"a'b\"></data/it's @start@><@lives@>"
            "<@directives@>");
  for (const std::string& line : lines_of(script)) EXPECT_NE(line[0], '@') << line;
  run.train_options = {"a\n#SBATCH --nodes=9"};
  EXPECT_THROW(script_of("", run), Error);
}

TEST(JobScript, IsNamedForItsRun) {
  JobRun run = small_run();
  run.run_dir = "/data/runs/a b%j";
  JobConfig job = parse_job_config(kSmall + "log_dir: '/logs'", "job");
  complete_job(job, run);
  EXPECT_EQ(job.name(), "a_b_j");
  EXPECT_EQ(job.log_dir(), "/logs");
}

TEST(JobScript, RefusesPathsThatSbatchWouldReadOtherwise) {
  const auto problem = [](const std::string& more, const JobRun& run) {
    try {
      script_of(more, run);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(problem("log_dir: '/a b'", small_run()),
            "log_dir is \"/a b\", expected letters, digits and / . _ + , : @ = - only, because "
            "sbatch gives others a meaning");
  EXPECT_NE(problem("log_dir: '/a%j'", small_run()), "");
  JobRun run = small_run();
  run.directory = "/my data";
  EXPECT_NE(problem("log_dir: '/logs'", run).find("the current directory is \"/my data\""),
            std::string::npos);
}

}  // namespace
}  // namespace tessera
