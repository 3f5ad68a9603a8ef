#pragma once

#include <string>

#include "launcher/doctor/machine.h"

namespace tessera {

/// What this program is made of. What was not found is empty.
struct Program {
  std::string version;   ///< version_text()
  std::string path;      ///< its file
  std::string digest;    ///< XXH3-128 of that file
  bool cuda = false;     ///< built with the CUDA backend
  std::string mpi;       ///< what the MPI library says about itself
  std::string mpi_file;  ///< and where it was loaded from
  std::string pmix;      ///< what the PMIx library says about itself
  std::string nccl;      ///< version of the NCCL library, "2.28.9"
};

/// Loads PMIx and NCCL to ask for their versions, and starts nothing of them.
Program this_program(const Machine& machine);

/// The file of the library whose name begins with `name`, in the text of /proc/self/maps.
std::string loaded_file(const std::string& maps, const std::string& name);
/// "2.28.9" for 22809, NCCL's number for it.
std::string nccl_version(int code);

}  // namespace tessera
