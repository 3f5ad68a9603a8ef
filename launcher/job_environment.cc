#include "launcher/job_environment.h"

#include <cstdlib>

namespace tessera {

namespace {

// 0 when the variable is not set or is no number.
int number(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? 0 : std::atoi(text);
}

}  // namespace

JobEnvironment job_environment() {
  JobEnvironment job;
  job.started = {.by_mpirun = number("OMPI_COMM_WORLD_SIZE"),
                 .by_srun = number("SLURM_STEP_NUM_TASKS"),
                 .by_sbatch = number("SLURM_NTASKS")};
  if (job.started.by_mpirun > 0) {
    job.ranks = job.started.by_mpirun;
    job.rank = number("OMPI_COMM_WORLD_RANK");
  } else if (job.started.by_srun > 0) {
    job.ranks = job.started.by_srun;
    job.rank = number("SLURM_PROCID");
  }
  return job;
}

}  // namespace tessera
