#include "launcher/doctor/checkup.h"

#include <unistd.h>

#include <array>
#include <filesystem>
#include <functional>
#include <future>
#include <vector>

#include "launcher/doctor/checks.h"
#include "launcher/doctor/interfaces.h"
#include "launcher/doctor/storage_check.h"
#include "launcher/doctor/words.h"
#include "launcher/doctor/world_check.h"
#include "launcher/job_environment.h"

namespace tessera {

namespace {

// Seconds for a second's work: the file system may be slow, and is told so.
constexpr double kStoragePatience = 8;

std::string host_name() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

Finding check_program(const Program& program) {
  return {Verdict::kOk, "program",
          program.version + ", " + program.path + ", file " + program.digest.substr(0, 8)};
}

Findings check_world(const Machine& machine, const Program& program, bool root) {
  if (job_environment().ranks > 1) {
    return {{Verdict::kOk, "world", "not tried: this is a rank of a job already"}};
  }
  // Without mpirun, or with another MPI's, that is told already.
  if (!machine.ask({"mpirun", "--version"}, 3).output.starts_with("mpirun (Open MPI)")) return {};
  const WorldQuestion question{.program = program.path, .root = root};
  return judge_world(machine.ask(world_command(question), world_patience(question)));
}

std::map<std::string, double> numbers_of(const Machine& machine) {
  std::map<std::string, double> numbers;
  const std::string status = machine.file("/proc/self/status").value_or("");
  numbers["cores"] = count_of_ranges(value_of(status, "Cpus_allowed_list").value_or(""));
  for (const Interface& one : interfaces_of(machine)) {
    if (!one.usable()) continue;
    numbers["mtu " + one.name] = one.mtu;
    if (one.speed) numbers["speed " + one.name] = *one.speed;
  }
  return numbers;
}

}  // namespace

Checkup check_this_host(const Machine& machine, const CheckupOptions& options) {
  Checkup checkup{.host = host_name(), .program = this_program(machine)};
  const Program& program = checkup.program;
  // All at once, because they wait for other programs.
  const std::vector<std::function<Findings()>> checks{
      [&] { return check_mpi(machine, program); },
      [&] { return check_slurm(machine); },
      [&] { return check_gpus(machine, program); },
      [&] { return check_network(machine, program, options.interface); },
      [&] { return check_limits(machine); },
      [&] { return check_memory(machine); },
      [&] { return check_cores(machine); },
  };
  std::vector<std::future<Findings>> running;
  for (const auto& check : checks) running.push_back(std::async(std::launch::async, check));
  checkup.numbers = numbers_of(machine);
  checkup.findings = {check_program(program)};
  for (std::future<Findings>& one : running) append(checkup.findings, one.get());

  // Those that measure come alone.
  const std::string directory =
      std::filesystem::absolute(options.run_directory).lexically_normal().string();
  std::vector<std::string> storage{program.path, "doctor", "storage", directory};
  if (!options.marker.empty()) storage.push_back(options.marker);
  append(checkup.findings,
         check_storage(machine, directory, machine.ask(storage, kStoragePatience)));
  if (options.world) append(checkup.findings, check_world(machine, program, options.root));
  return checkup;
}

}  // namespace tessera
