#include <array>
#include <string_view>

#include "kernels/core/error.h"
#include "launcher/doctor/checks.h"
#include "launcher/doctor/words.h"

namespace tessera {

namespace {

constexpr double kPatience = 3;  // seconds for a command

struct Library {
  std::string family;  // "Open MPI"; empty when it is none that we know
  std::string version;
};

std::string to_string(const Library& library) {
  return library.family.empty() ? "an MPI that is not known"
                                : library.family + " " + library.version;
}

// From what a library or its mpirun says about itself.
Library library_of(const std::string& text) {
  // MVAPICH and Intel MPI are made from MPICH, whose starter (hydra) they use.
  static constexpr std::array<std::array<std::string_view, 2>, 6> kNames{
      {{"Open MPI", "Open MPI"},
       {"OpenRTE", "Open MPI"},
       {"Intel(R) MPI", "Intel MPI"},
       {"MVAPICH", "MVAPICH"},
       {"MPICH", "MPICH"},
       {"HYDRA", "MPICH"}}};
  for (const auto& [name, family] : kNames) {
    const size_t at = text.find(name);
    if (at != std::string::npos) return {std::string(family), version_in(text.substr(at))};
  }
  return {};
}

std::string series(const std::string& version) {
  return version.substr(0, version.find('.'));
}

Finding judge_mpirun(const Program& program, const std::string& path, const std::string& said) {
  const Library linked = library_of(program.mpi);
  const Library starter = library_of(said);
  const std::string ours =
      concat("the program is linked with ", to_string(linked),
             program.mpi_file.empty() ? "" : concat(" (", program.mpi_file, ")"));
  if (linked.family != starter.family || series(linked.version) != series(starter.version)) {
    return {Verdict::kFail, "mpi",
            concat(ours, ", but the mpirun in PATH (", path, ") is ", to_string(starter),
                   ": every rank would be alone"),
            concat("put the mpirun of ", to_string(linked),
                   " first in PATH, or build again with the other MPI")};
  }
  if (linked.version != starter.version) {
    return {Verdict::kWarn, "mpi",
            concat(ours, ", the mpirun in PATH (", path, ") is ", to_string(starter)),
            "use the mpirun of the same installation"};
  }
  if (linked.family != "Open MPI") {
    return {Verdict::kWarn, "mpi", concat(ours, ", and so is the mpirun in PATH (", path, ")"),
            "tessera launch and tessera doctor speak to the mpirun of Open MPI only; start jobs "
            "of this MPI yourself"};
  }
  return {Verdict::kOk, "mpi", concat(ours, ", and the mpirun in PATH (", path, ") is the same")};
}

Finding judge_pmix(const Program& program) {
  if (!program.pmix.empty()) {
    const std::string version = version_in(program.pmix);
    if (compare_versions(version, "3") < 0) {
      return {Verdict::kWarn, "pmix", concat("PMIx ", version),
              "srun --mpi=pmix is known to work from version 3 on; use mpirun"};
    }
    return {Verdict::kOk, "pmix", "PMIx " + version};
  }
  // Then MPI has a PMIx of its own inside, or speaks another language with its starter.
  return {Verdict::kOk, "pmix", "no library of that name: MPI brings its own, or needs none"};
}

}  // namespace

Findings check_mpi(const Machine& machine, const Program& program) {
  const std::string path =
      last_line_of(machine.ask({"sh", "-c", "command -v mpirun"}, kPatience).output);
  if (path.empty()) {
    return {{Verdict::kWarn, "mpi",
             concat("the program is linked with ", to_string(library_of(program.mpi)),
                    ", and there is no mpirun in PATH"),
             "install openmpi-bin, or put its folder into PATH; one rank alone and srun need none"},
            judge_pmix(program)};
  }
  const CapturedCommand said = machine.ask({"mpirun", "--version"}, kPatience);
  if (!said.ok()) {
    return {{Verdict::kFail, "mpi", concat("mpirun --version: ", said.trouble),
             concat("look at ", path, ": is its installation complete?")},
            judge_pmix(program)};
  }
  return {judge_mpirun(program, path, said.output), judge_pmix(program)};
}

}  // namespace tessera
