#include <filesystem>
#include <iostream>

#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "runtime/data/file.h"
#include "runtime/report/report_page.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "report";
  line.usage = "RUN [options]";
  line.about =
      "Writes one HTML page about a run, for a browser without a network: curves, heat maps,\n"
      "budgets, expert load, a timeline, and in words what deserves a look (docs/report.md). The\n"
      "run may go on, and files of it may be missing.";
  line.examples =
      "look at a run that goes on\n"
      "  tessera report runs/quickstart\n"
      "somewhere else, from a machine that may only read the run\n"
      "  tessera report /scratch/runs/moe-100b --output moe-100b.html\n";
  line.options.add_options()                                                      //
      ("run", options::value<std::string>()->value_name("RUN"), "run directory")  //
      ("output", options::value<std::string>()->value_name("FILE"),
       "what to write; default: RUN/report.html")  //
      ("help", options::bool_switch(), "show this text");
  line.positional = {"run"};
  return line;
}

}  // namespace

int run_report(const std::vector<std::string>& arguments) {
  const auto values = parse_arguments(command_line(), arguments);
  if (!values) return static_cast<int>(ExitCode::kFinished);
  const fs::path directory = (*values)["run"].as<std::string>();
  const RunRecord run = read_run(directory);
  const fs::path output = values->count("output") ? fs::path((*values)["output"].as<std::string>())
                                                  : directory / "report.html";
  const std::string page = report_page(run);
  write_file(output, page);
  std::cout << directory.string() << ": " << run.status << "\n";
  for (const RunWarning& warning : run.warnings) std::cout << "  look: " << warning.text << "\n";
  for (const std::string& gap : run.gaps) std::cout << "  gap: " << gap << "\n";
  std::cout << "wrote " << output.string() << ", " << (page.size() >> 10)
            << " KiB: open it in a browser\n";
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
