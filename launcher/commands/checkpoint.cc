#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <iostream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/candidates.h"
#include "checkpoint/compare.h"
#include "checkpoint/reader.h"
#include "checkpoint/verify.h"
#include "launcher/arguments.h"
#include "launcher/commands/choose.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/export.h"
#include "launcher/commands/import.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

using Values = boost::program_options::variables_map;

constexpr const char* kHelp =
    R"(usage: tessera checkpoint list RUN [--newest-step]
       tessera checkpoint inspect CHECKPOINT
       tessera checkpoint verify CHECKPOINT
       tessera checkpoint diff CHECKPOINT OTHER
       tessera checkpoint export CHECKPOINT --output DIR [options]
       tessera checkpoint import HF_DIR --config FILE [options]
       tessera checkpoint choose CHECKPOINT --data DIR --output RUN [options]

  list     the checkpoints of a run, and why any of them is not valid
  inspect  what a checkpoint holds: step, mesh, parameters, a table of its tensors
  verify   checks every byte of a checkpoint
  diff     the tensors in which two checkpoints differ
  export   the model as Hugging Face's transformers read it
  import   step 0 of a run from a model of Hugging Face
  choose   learns which KV groups ought to be global, and puts them first

CHECKPOINT is a directory such as RUN/checkpoints/step-00001000, or RUN for its newest one.
tessera checkpoint list --help says more, and so on.

example: is the newest checkpoint of a run good?
  tessera checkpoint verify runs/small
)";

std::string size_text(int64_t bytes) {
  static constexpr std::array<const char*, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text.data();
}

std::string time_text(int64_t unix_ns) {
  const auto seconds = static_cast<std::time_t>(unix_ns / 1'000'000'000);
  std::tm local{};
  localtime_r(&seconds, &local);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S", &local);
  return text.data();
}

std::string with_commas(int64_t number) {
  std::string text = std::to_string(number);
  for (int64_t at = std::ssize(text) - 3; at > 0; at -= 3) {
    text.insert(static_cast<size_t>(at), 1, ',');
  }
  return text;
}

// Columns as wide as their longest text, the first ones to the left, the last to the right.
void print_table(const std::vector<std::vector<std::string>>& rows, size_t left_columns) {
  std::vector<size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - row[i].size(), ' ');
      const bool left = i < left_columns;
      line += concat(i == 0 ? "" : "  ", left ? row[i] : padding, left ? padding : row[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    std::cout << line << "\n";
  }
}

int list(const Values& values) {
  const std::filesystem::path run = values["RUN"].as<std::string>();
  const std::vector<Candidate> candidates = list_checkpoints(checkpoints_directory(run));
  if (values["newest-step"].as<bool>()) {
    const auto newest = std::find_if(candidates.begin(), candidates.end(), [](const auto& one) {
      return one.state == CandidateState::kValid;
    });
    std::cout << (newest == candidates.end() ? 0 : newest->id.step) << "\n";
    return 0;
  }
  if (!std::filesystem::exists(run)) {
    throw Error(ExitCode::kUsage, concat(run.string(), " does not exist"));
  }
  if (candidates.empty()) {
    std::cout << "no checkpoints in " << run.string() << "\n";
    return 0;
  }
  std::vector<std::vector<std::string>> rows{{"directory", "state", "step", "epoch", "size"}};
  for (const Candidate& candidate : candidates) {
    const bool valid = candidate.state == CandidateState::kValid;
    rows.push_back({candidate.path.filename(), name_of(candidate.state),
                    with_commas(candidate.id.step), valid ? std::to_string(candidate.id.epoch) : "",
                    valid ? size_text(candidate.bytes) : ""});
  }
  print_table(rows, 2);
  for (const Candidate& candidate : candidates) {
    if (candidate.state == CandidateState::kValid) continue;
    std::cout << candidate.path.filename().string() << ": " << candidate.reason << "\n";
  }
  return 0;
}

int inspect(const Values& values) {
  const CheckpointReader reader(find_checkpoint(values["CHECKPOINT"].as<std::string>()));
  const CheckpointFacts& facts = reader.facts();
  std::map<TensorKind, int64_t> elements;
  for (const TensorFacts& tensor : reader.tensors()) {
    elements[tensor.kind] += tensor.shape.elements();
  }
  std::string mesh;
  for (const MeshAxis& axis : facts.mesh) {
    mesh += concat(mesh.empty() ? "" : " x ", axis.name, " ", axis.size);
  }
  std::cout << "checkpoint  " << reader.directory().string() << "\n"
            << "step        " << with_commas(facts.id.step) << "\n"
            << "tokens      " << with_commas(facts.consumed_tokens) << "\n"
            << "samples     " << with_commas(facts.consumed_samples) << "\n"
            << "parameters  " << with_commas(elements[TensorKind::kParameter]) << "\n"
            << "mesh        " << mesh << "\n"
            << "size        " << size_text(reader.bytes()) << "\n"
            << "saved       " << time_text(facts.wall_time_unix_ns) << " by "
            << facts.writer_version << (facts.git_hash.empty() ? "" : " ") << facts.git_hash << "\n"
            << "run         " << facts.run_uuid << ", incarnation " << facts.id.epoch << "\n";
  if (facts.parent.epoch > 0) {
    std::cout << "parent      step " << with_commas(facts.parent.step) << " of incarnation "
              << facts.parent.epoch << "\n";
  }
  std::cout << "weights     " << (facts.finite ? "all finite" : "some are infinite or NaN") << "\n";
  if (facts.next_step_digest) {
    std::cout << "next step   parameters with digest " << std::hex << *facts.next_step_digest
              << std::dec << "\n";
  }
  std::cout << "blobs       ";
  for (const std::string& name : reader.blob_names()) std::cout << name << " ";
  std::cout << "\n\n";
  std::vector<std::vector<std::string>> rows{{"kind", "tensor", "dtype", "shape", "size"}};
  for (const TensorFacts& tensor : reader.tensors()) {
    rows.push_back({name_of(tensor.kind), tensor.name, name_of(tensor.dtype), concat(tensor.shape),
                    size_text(tensor.bytes)});
  }
  print_table(rows, 4);
  return 0;
}

// Of a run the newest that claims to be committed: damage is to be told, not to be passed over.
std::filesystem::path checkpoint_to_verify(const std::filesystem::path& path) {
  for (const Candidate& candidate : list_checkpoints(checkpoints_directory(path))) {
    if (candidate.state != CandidateState::kUncommitted) return candidate.path;
  }
  return find_checkpoint(path);
}

int verify(const Values& values) {
  const auto start = std::chrono::steady_clock::now();
  const CheckpointReader reader(checkpoint_to_verify(values["CHECKPOINT"].as<std::string>()));
  const bool on_terminal = isatty(STDERR_FILENO) != 0;
  int64_t shown = -1;
  verify_checkpoint(reader, [&](const VerifyProgress& progress) {
    const int64_t percent = progress.bytes_done * 100 / progress.bytes_total;
    if (!on_terminal || percent == shown) return;
    shown = percent;
    std::cerr << "\rverifying " << percent << "% of " << size_text(progress.bytes_total)
              << (percent == 100 ? "\n" : "") << std::flush;
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::array<char, 32> time{};
  std::snprintf(time.data(), time.size(), "%.1f s", seconds.count());
  std::cout << reader.directory().string() << ": step " << with_commas(reader.facts().id.step)
            << ", " << reader.tensors().size() << " tensors, " << size_text(reader.bytes())
            << " in " << time.data() << ": every checksum and digest is right\n";
  return 0;
}

int diff(const Values& values) {
  constexpr size_t kMaxLines = 20;
  const CheckpointReader left(find_checkpoint(values["CHECKPOINT"].as<std::string>()));
  const CheckpointReader right(find_checkpoint(values["OTHER"].as<std::string>()));
  std::vector<TensorDifference> differences = compare_checkpoints(left, right);
  const bool all = !values["parameters"].as<bool>();
  const auto counts = [&](const auto& tensor) {
    return all || tensor.kind == TensorKind::kParameter || tensor.kind == TensorKind::kBuffer;
  };
  std::erase_if(differences, [&](const TensorDifference& one) { return !counts(one); });
  for (size_t i = 0; i < std::min(differences.size(), kMaxLines); ++i) {
    const TensorDifference& one = differences[i];
    std::cout << name_of(one.kind) << " " << one.name << " ";
    if (!one.reason.empty()) {
      std::cout << one.reason << "\n";
    } else {
      std::cout << "differs in " << with_commas(one.elements) << " elements, first at " << one.first
                << " (" << one.first_left << " and " << one.first_right << "), at most by "
                << one.largest << "\n";
    }
  }
  if (differences.size() > kMaxLines) {
    std::cout << "and " << differences.size() - kMaxLines << " tensors more\n";
  }
  std::cout << (differences.empty() ? "the checkpoints hold the same state: "
                                    : "the checkpoints differ: ")
            << differences.size() << " of "
            << std::max(std::ranges::count_if(left.tensors(), counts),
                        std::ranges::count_if(right.tensors(), counts))
            << " tensors\n";
  return differences.empty() ? 0 : 1;
}

struct Action {
  CommandLine line;
  int (*run)(const Values& values);
};

CommandLine line_of(const std::string& action, const std::vector<std::string>& positional) {
  CommandLine line;
  line.name = concat("checkpoint ", action);
  for (const std::string& name : positional) {
    line.usage += concat(line.usage.empty() ? "" : " ", name);
  }
  line.positional = positional;
  return line;
}

std::map<std::string, Action> actions() {
  Action list_action{line_of("list", {"RUN"}), list};
  list_action.line.usage += " [--newest-step]";
  list_action.line.about =
      "Lists the checkpoints of a run, newest first, and says why any of them is not valid.";
  list_action.line.options.add_options()(
      "newest-step", boost::program_options::bool_switch(),
      "print the step of the newest valid one and nothing else, 0 when there is none: for "
      "batch scripts that see whether a run gets on");
  list_action.line.examples = "what has a run saved?\n  tessera checkpoint list runs/small\n";

  Action inspect_action{line_of("inspect", {"CHECKPOINT"}), inspect};
  inspect_action.line.about =
      "Prints what a checkpoint holds: step, mesh, parameters, a table of its tensors.";
  inspect_action.line.examples =
      "the newest checkpoint of a run\n  tessera checkpoint inspect runs/small\n";

  Action verify_action{line_of("verify", {"CHECKPOINT"}), verify};
  verify_action.line.about =
      "Reads every byte of a checkpoint and checks every checksum and digest. When one is wrong,\n"
      "names the file, the bytes and the tensors, with exit code 65.";
  verify_action.line.examples =
      "one step of a run\n  tessera checkpoint verify runs/small/checkpoints/step-00001000\n";

  Action diff_action{line_of("diff", {"CHECKPOINT", "OTHER"}), diff};
  diff_action.line.about =
      "Prints the tensors in which two checkpoints differ, whatever meshes saved them. The exit\n"
      "code is 0 when there is none and 1 otherwise.";
  diff_action.line.options.add_options()(
      "parameters", boost::program_options::bool_switch(),
      "only of the model itself: pass over masters and moments of the optimizer");
  diff_action.line.examples =
      "did two runs end in the same state?\n  tessera checkpoint diff runs/calm runs/restarted\n";
  return {{"list", list_action},
          {"inspect", inspect_action},
          {"verify", verify_action},
          {"diff", diff_action},
          {"export", {export_command_line(), export_checkpoint}},
          {"import", {import_command_line(), import_checkpoint}},
          {"choose", {choose_command_line(), choose_checkpoint}}};
}

}  // namespace

int run_checkpoint(const std::vector<std::string>& arguments) {
  if (arguments.empty()) misuse("checkpoint", "what to do is missing");
  const std::string& name = arguments.front();
  if (name == "--help") {
    std::cout << kHelp;
    return static_cast<int>(ExitCode::kFinished);
  }
  const std::map<std::string, Action> known = actions();
  const auto action = known.find(name);
  if (action == known.end()) {
    std::vector<std::string> names;
    for (const auto& [one, ignored] : known) names.push_back(one);
    misuse("checkpoint", concat("there is no ", in_quotes(name), did_you_mean(name, names)));
  }
  const std::optional<Values> values =
      parse_arguments(action->second.line, {arguments.begin() + 1, arguments.end()});
  return values ? action->second.run(*values) : static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
