#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <regex>
#include <sstream>

#include "kernels/core/error.h"
#include "launcher/arguments.h"
#include "launcher/captured_command.h"
#include "launcher/commands/commands.h"
#include "runtime/watch/flight_dump.h"
#include "runtime/watch/flight_story.h"
#include "runtime/watch/hang_report.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "flight";
  line.usage = "RUN [options]";
  line.about =
      "Explains why a run hung or crashed, from the records that its ranks left in RUN/flight: "
      "what\n"
      "each was at, for which exchange it waited, and which rank held up the others. A run that\n"
      "ended in order leaves none.";
  line.examples =
      "all ranks\n"
      "  tessera flight runs/quickstart\n"
      "the last exchanges and the stacks of rank 5\n"
      "  tessera flight runs/quickstart --rank 5\n";
  line.options.add_options()                                                      //
      ("run", options::value<std::string>()->value_name("RUN"), "run directory")  //
      ("rank", options::value<int>()->value_name("R"), "this rank in detail")     //
      ("exchanges", options::value<int>()->default_value(20)->value_name("N"),
       "how many of its exchanges to list, at most 4096")  //
      ("help", options::bool_switch(), "show this text");
  line.positional = {"run"};
  return line;
}

bool has_records(const fs::path& flight) {
  return fs::exists(flight) && std::any_of(fs::directory_iterator(flight), {}, [](const auto& one) {
           return one.path().filename().string().starts_with("ring-");
         });
}

// The directory with records: that of the last job, or of the one before when the last left none.
fs::path flight_of(const fs::path& run) {
  if (!fs::is_directory(run)) {
    throw Error(ExitCode::kUsage, concat(run.string(),
                                         " is no run directory; name that of a run, as "
                                         "run_dir in its configuration"));
  }
  for (const char* name : {"flight", "flight.previous"}) {
    if (has_records(run / name)) return run / name;
  }
  throw Error(ExitCode::kUsage, concat("there are no flight records in ", run.string(),
                                       "; a run that ended in order leaves none"));
}

// A line of a stack with the function and the line of the source, when it is of tessera itself and
// addr2line is there. A return address is behind the call.
std::string with_source(const std::string& line) {
  static const std::regex kAddress("^(.*/)?tessera\\(\\+0x([0-9a-f]+)\\)\\[.*$");
  std::smatch match;
  if (!std::regex_match(line, match, kAddress)) return line;
  std::ostringstream call;
  call << std::hex << std::stoull(match[2].str(), nullptr, 16) - 1;
  // A program that was found in PATH is named without its folder: it is this one.
  const std::string program =
      match[1].matched ? match[1].str() + "tessera" : fs::read_symlink("/proc/self/exe").string();
  const CapturedCommand found = capture_command({"addr2line", "-Cfpe", program, call.str()});
  if (!found.ok() || found.output.starts_with("??")) return line;
  return found.output.substr(0, found.output.find('\n'));
}

void print_stacks(const fs::path& file) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line == "end") continue;
    std::cout << (line.starts_with("thread") ? "" : "  ") << with_source(line) << "\n";
  }
}

void print_rank(const fs::path& flight, const RankReport& report, int exchanges) {
  std::cout << where_ranks_are({&report, 1}) << "its last exchanges:\n"
            << last_exchanges(report, exchanges);
  const fs::path stacks = stacks_file(flight, report.rank);
  if (!fs::exists(stacks) || fs::file_size(stacks) == 0) {
    std::cout << "no stacks: the process was stopped, gone, or did not answer\n";
    return;
  }
  std::cout << "its stacks:\n";
  print_stacks(stacks);
}

void print_all(const fs::path& flight, const std::vector<RankReport>& reports) {
  std::cout << flight.string() << ": records of " << reports.size() << " of "
            << reports.front().state.ranks << " ranks\n";
  if (fs::exists(hang_file(flight))) {
    std::cout << "said when the job was ended:\n"
              << std::ifstream(hang_file(flight)).rdbuf() << "\n";
  } else {
    const HangReport found = diagnose(reports);
    if (found.kind != HangKind::kNothing) {
      std::cout << "nothing was said when the job ended; the records say:\n"
                << found.sentence << "\n  " << found.evidence << " -> " << name_of(found.kind)
                << "\n\n";
    }
  }
  std::cout << "where the ranks were:\n" << where_ranks_are(reports);
}

}  // namespace

int run_flight(const std::vector<std::string>& arguments) {
  const CommandLine line = command_line();
  const auto values = parse_arguments(line, arguments);
  if (!values) return static_cast<int>(ExitCode::kFinished);
  const fs::path flight = flight_of((*values)["run"].as<std::string>());
  const std::vector<RankReport> reports = read_flight(flight);
  if (!values->count("rank")) {
    print_all(flight, reports);
    return static_cast<int>(ExitCode::kFinished);
  }
  const int rank = (*values)["rank"].as<int>();
  const int exchanges = (*values)["exchanges"].as<int>();
  if (exchanges < 0)
    misuse(line.name, concat("--exchanges is ", exchanges, ", expected 0 or more"));
  const auto found = std::find_if(reports.begin(), reports.end(),
                                  [&](const RankReport& one) { return one.rank == rank; });
  if (found == reports.end()) {
    misuse(line.name, concat("--rank is ", rank, ", but there are records of ", reports.size(),
                             " ranks, ", reports.front().rank, " to ", reports.back().rank));
  }
  print_rank(flight, *found, exchanges);
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
