#pragma once

#include <string>

#include "launcher/doctor/finding.h"
#include "launcher/doctor/machine.h"
#include "launcher/doctor/program.h"

namespace tessera {

/// The checks of one machine, a file each. Each asks `machine`, and judges what it says; a machine
/// that says nothing is no reason to fail. They can be run at the same time.

/// The library of the program, the mpirun in PATH, and whether they belong together; PMIx.
Findings check_mpi(const Machine& machine, const Program& program);
/// Slurm: version, whether its controller answers, what `srun --mpi` can be, and settings that
/// make lost nodes slow to be seen.
Findings check_slurm(const Machine& machine);
/// GPUs, driver, whether they reach each other's memory, and NCCL.
Findings check_gpus(const Machine& machine, const Program& program);
/// Interfaces, InfiniBand, and which of them MPI and NCCL use. `interface`, when it is not empty,
/// is the one that is meant.
Findings check_network(const Machine& machine, const Program& program,
                       const std::string& interface);
/// What `ulimit` says.
Findings check_limits(const Machine& machine);
/// Main memory, the limit of the control group, and shared memory.
Findings check_memory(const Machine& machine);
/// Cores that this process may use, quotas, and others that use them.
Findings check_cores(const Machine& machine);

}  // namespace tessera
