#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace tessera {

class JobConfig;

/// What a job runs.
struct JobRun {
  std::filesystem::path program;           ///< of the ranks: tessera
  std::vector<std::string> train_options;  ///< behind `tessera train`
  std::filesystem::path directory;         ///< that all relative paths begin in
  std::filesystem::path run_dir;           ///< absolute
  int64_t steps = 1;                       ///< of the whole run
  bool root = false;                       ///< the user is root, which mpirun wants to be told
};

/// Makes what depends on the run part of the job: name and log_dir (absolute). Throws kUsage when
/// they, or `run.directory`, do not fit into an #SBATCH line.
void complete_job(JobConfig& job, const JobRun& run);

/// The script for sbatch: slurm/job.sh with its places filled. The job is complete.
std::string job_script(const JobConfig& job, const JobRun& run);

}  // namespace tessera
