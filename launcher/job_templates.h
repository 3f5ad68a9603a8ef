#pragma once

#include <string_view>

namespace tessera {

/// The files of slurm/, which the build puts into the program. The first has a place for each of
/// the others, named in it as @start@.
struct JobTemplates {
  std::string_view job;
  std::string_view start_srun;
  std::string_view start_mpirun;
  std::string_view go_on_requeue;
  std::string_view go_on_array;
  std::string_view go_on_singleton;
  std::string_view one_life;
  std::string_view lives_with_spares;
};

const JobTemplates& job_templates();

}  // namespace tessera
