#include <algorithm>
#include <iostream>

#include "kernels/core/error.h"
#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "launcher/host_facts.h"
#include "launcher/rank_probe.h"

namespace tessera {

namespace {

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "host-check";
  line.usage = "--launch NAME --marker FILE -- train CONFIG [options of train]  |  --exchange";
  line.about =
      "Prints facts about this host, one a line: what tessera launch asks by ssh before it starts\n"
      "ranks here. Ends ranks that an earlier start of the same launch has left.";
  line.examples =
      "what would a launcher see of host a?\n"
      "  ssh a tessera host-check --launch none --marker none -- train "
      "configs/quickstart.textproto\n";
  line.options.add_options()                                                               //
      ("launch", options::value<std::string>()->value_name("NAME"), "name of the launch")  //
      ("marker", options::value<std::string>()->value_name("FILE"),
       "file in the run directory that the launcher has made")  //
      ("exchange", options::bool_switch(),
       "under mpirun: say hello to every other rank, and print nothing")  //
      ("help", options::bool_switch(), "show this text");
  return line;
}

}  // namespace

int run_host_check(const std::vector<std::string>& arguments) {
  const CommandLine line = command_line();
  const auto bar = std::find(arguments.begin(), arguments.end(), "--");
  const auto values = parse_arguments(line, {arguments.begin(), bar});
  if (!values) return static_cast<int>(ExitCode::kFinished);
  if ((*values)["exchange"].as<bool>()) {
    exchange_greetings();
    return static_cast<int>(ExitCode::kFinished);
  }
  if (arguments.end() - bar < 2 || *(bar + 1) != "train") {
    misuse(line.name, "expected -- train CONFIG behind the options");
  }
  for (const char* name : {"launch", "marker"}) {
    if (!values->count(name)) misuse(line.name, concat("--", name, " is missing"));
  }
  tell_host_facts({.launch = (*values)["launch"].as<std::string>(),
                   .marker = (*values)["marker"].as<std::string>(),
                   .train = {bar + 2, arguments.end()}},
                  [](const std::string& name, const std::string& value) {
                    std::cout << fact_line(name, value) << std::flush;
                  });
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
