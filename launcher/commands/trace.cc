#include <algorithm>
#include <charconv>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string_view>

#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "runtime/config/wording.h"
#include "runtime/trace/trace_parts.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "trace";
  line.usage = "RUN [options]";
  line.about =
      "Joins the parts that the ranks of tessera train --trace have written, also those of a run\n"
      "that died, to one file for https://ui.perfetto.dev or chrome://tracing (docs/trace.md).";
  line.examples =
      "two tensor groups of a large job, from its newest trace\n"
      "  tessera trace runs/moe-100b --ranks 0-7,96-103\n";
  line.options.add_options()  //
      ("run", options::value<std::string>()->value_name("RUN"),
       "a run directory for its newest trace, or a folder in its trace/")  //
      ("ranks", options::value<std::string>()->value_name("A-B,C"),
       "the ranks to join; default: all")  //
      ("output", options::value<std::string>()->value_name("FILE"),
       "what to write; default: the name of the folder and of the ranks, beside the folder")  //
      ("help", options::bool_switch(), "show this text");
  line.positional = {"run"};
  return line;
}

fs::path folder_of(const std::string& run) {
  if (!ranks_with_parts(run).empty()) return run;
  fs::path newest;
  fs::file_time_type time{};
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(fs::path(run) / "trace", none)) {
    if (!entry.is_directory() || ranks_with_parts(entry.path()).empty()) continue;
    const fs::file_time_type written = entry.last_write_time();
    if (!newest.empty() && written <= time) continue;
    newest = entry.path();
    time = written;
  }
  if (newest.empty()) {
    throw Error(ExitCode::kUsage,
                concat(run,
                       " has no trace; tessera train --trace writes one, of a run "
                       "that goes on as well"));
  }
  return newest;
}

std::optional<int> rank_in(std::string_view text) {
  int rank = 0;
  const auto [end, trouble] = std::from_chars(text.data(), text.data() + text.size(), rank);
  if (trouble != std::errc() || end != text.data() + text.size() || rank < 0) return std::nullopt;
  return rank;
}

/// "0-7,96" of those that there are.
std::vector<int> chosen_ranks(std::string_view text, const std::vector<int>& there) {
  std::vector<int> chosen;
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view one = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), one.size() + 1));
    const size_t dash = one.find('-');
    const auto first = rank_in(one.substr(0, dash));
    const auto last = dash == std::string_view::npos ? first : rank_in(one.substr(dash + 1));
    if (!first || !last || *last < *first) {
      misuse("trace", concat("--ranks has ", in_quotes(std::string(one)),
                             ", expected ranks as 3 or 0-7, with commas between them"));
    }
    const auto begin = std::lower_bound(there.begin(), there.end(), *first);
    const auto end = std::upper_bound(begin, there.end(), *last);
    if (begin == end) {
      misuse("trace", concat("--ranks has ", one, ", but there are parts of ranks ", there.front(),
                             " to ", there.back()));
    }
    chosen.insert(chosen.end(), begin, end);
  }
  std::sort(chosen.begin(), chosen.end());
  chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
  return chosen;
}

}  // namespace

int run_trace(const std::vector<std::string>& arguments) {
  const auto values = parse_arguments(command_line(), arguments);
  if (!values) return static_cast<int>(ExitCode::kFinished);
  const fs::path folder = folder_of((*values)["run"].as<std::string>());
  std::vector<int> ranks = ranks_with_parts(folder);
  std::string output = folder.string();
  while (output.ends_with('/')) output.pop_back();
  if (values->count("ranks")) {
    const std::string& text = (*values)["ranks"].as<std::string>();
    ranks = chosen_ranks(text, ranks);
    output += "-ranks-" + text;
  }
  output += ".json";
  if (values->count("output")) output = (*values)["output"].as<std::string>();
  const JoinedTrace joined = join_trace(folder, ranks, output);
  std::cout << "joined " << joined.ranks << (joined.ranks == 1 ? " part, " : " parts, ")
            << (joined.bytes >> 10) << " KiB: open " << output
            << " in https://ui.perfetto.dev or chrome://tracing\n";
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
