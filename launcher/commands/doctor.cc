#include <unistd.h>

#include <array>
#include <cstdio>
#include <iostream>

#include "kernels/core/error.h"
#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "launcher/doctor/checkup.h"
#include "launcher/doctor/hosts_check.h"
#include "launcher/doctor/pair_probe.h"
#include "launcher/doctor/storage_probe.h"
#include "launcher/job_environment.h"
#include "launcher/mpirun.h"
#include "parallel/mpi_communicator.h"

namespace tessera {

namespace {

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "doctor";
  line.usage = "[options]";
  line.about = "Looks at what training needs: MPI, Slurm, GPUs, networks, "
               "limits, memory, cores, storage;\n"
               "with --hosts on each of them, and between them. One line each: "
               "ok, warn or fail, what was\n"
               "found, and behind an arrow what to do. Exit code 1 when "
               "something fails.";
  line.examples = "this host, and the directory that a run will write to\n"
                  "  tessera doctor --run-dir runs/quickstart\n"
                  "three hosts that are reached by ssh\n"
                  "  tessera doctor --hosts a:8,b:8,c:8 --run-dir runs/large "
                  "--interface ib0\n";
  line.options.add_options() //
      ("run-dir",
       options::value<std::string>()->default_value(".")->value_name("DIR"),
       "directory of a run, or one where it will be") //
      ("hosts", options::value<std::string>()->value_name("A:8,B:8"),
       "hosts and how many ranks each will take") //
      ("interface", options::value<std::string>()->value_name("NIC"),
       "the network interface that ranks should use")                    //
      ("json", options::bool_switch(), "print one line of JSON instead") //
      ("help", options::bool_switch(), "show this text");
  return line;
}

// A line at once: those of several ranks come through one pipe.
void tell(const std::string &line) {
  const std::string whole = line + "\n";
  (void)!write(STDOUT_FILENO, whole.data(), whole.size());
}

// The parts that may hang are processes of their own, which doctor starts.

int run_storage(const std::vector<std::string> &arguments) {
  probe_storage(arguments.at(1), arguments.size() > 2 ? arguments[2] : "",
                tell);
  return static_cast<int>(ExitCode::kFinished);
}

int run_host(const std::vector<std::string> &arguments) {
  const CheckupOptions options{.run_directory = arguments[1],
                               .marker = arguments[2],
                               .interface = arguments[3],
                               .root = geteuid() == 0};
  tell(to_json(check_this_host(ThisMachine(), options)));
  return static_cast<int>(ExitCode::kFinished);
}

int run_pairs() {
  MpiEnvironment mpi;
  check_world_size(mpi.world().size(), job_environment().started);
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  probe_pairs(mpi.world(), name.data(), tell);
  return static_cast<int>(ExitCode::kFinished);
}

} // namespace

int run_doctor(const std::vector<std::string> &arguments) {
  if (arguments.size() >= 2 && arguments[0] == "storage")
    return run_storage(arguments);
  if (arguments.size() == 1 && arguments[0] == "pairs")
    return run_pairs();
  if (arguments.size() == 4 && arguments[0] == "host")
    return run_host(arguments);
  const CommandLine line = command_line();
  const auto values = parse_arguments(line, arguments);
  if (!values)
    return static_cast<int>(ExitCode::kFinished);
  CheckupOptions options{.run_directory =
                             (*values)["run-dir"].as<std::string>()};
  options.root = geteuid() == 0;
  if (values->count("interface"))
    options.interface = (*values)["interface"].as<std::string>();
  const Checkup checkup =
      values->count("hosts")
          ? check_all_hosts(ThisMachine(),
                            parse_hosts((*values)["hosts"].as<std::string>()),
                            options)
          : check_this_host(ThisMachine(), options);
  if ((*values)["json"].as<bool>()) {
    std::cout << to_json(checkup) << "\n";
  } else {
    std::cout << lines_of(checkup.findings);
  }
  std::cout.flush();
  const bool failed = worst_of(checkup.findings) == Verdict::kFail;
  return static_cast<int>(failed ? ExitCode::kError : ExitCode::kFinished);
}

} // namespace tessera
