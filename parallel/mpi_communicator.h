#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace tessera {

/// What those who started this process say about the job: how many ranks each of them started, or
/// 0 when it started none. The launcher reads them from the environment.
struct StartedRanks {
  int by_mpirun = 0;  ///< OMPI_COMM_WORLD_SIZE
  int by_srun = 0;    ///< SLURM_STEP_NUM_TASKS
  int by_sbatch = 0;  ///< SLURM_NTASKS, the tasks of the job
};

/// Throws Error(kUsage) when the world of `world_size` ranks that MPI found is not the job that was
/// started: typically one of several worlds of one rank each, all of which would train the same
/// model over the same files. mpirun is believed before srun, which starts mpirun's daemons. The
/// tasks of the job count where srun did not start the process: its steps have tasks of their own.
void check_world_size(int world_size, const StartedRanks& started);

/// MPI for the life of the process. Make one, in main, before any other thread is started; only
/// the thread that made it may communicate. A HostCommunicator: tensors of a GPU are staged.
class MpiEnvironment {
 public:
  /// Initialises MPI.
  MpiEnvironment();
  /// Ends MPI together with all other ranks; during an exception, which the others know nothing
  /// about, aborts the job instead.
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;

  Communicator& world() { return *world_; }
  /// Name and version of the MPI library, which need not be initialised for it.
  static std::string library();
  /// Ends every rank of the job at once with exit code `code`.
  [[noreturn]] void abort(int code);

 private:
  std::unique_ptr<Communicator> world_;
};

}  // namespace tessera
