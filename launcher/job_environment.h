#pragma once

#include "parallel/mpi_communicator.h"

namespace tessera {

/// What those who started this process say about it, before MPI is asked.
struct JobEnvironment {
  StartedRanks started;
  int rank = 0;   ///< of this process among `ranks`
  int ranks = 1;  ///< 1 when nobody started it as part of a job
};

/// Reads the variables that Open MPI's mpirun and Slurm's sbatch and srun set.
JobEnvironment job_environment();

}  // namespace tessera
