#include <iostream>

#include "kernels/core/error.h"
#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "runtime/score/task_scores.h"

namespace tessera {

namespace {

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "eval task";
  line.usage = "--checkpoint DIR --data DIR [options]";
  line.about =
      "Asks a trained model the validation samples of a synthetic task: how often it is right, "
      "and\n"
      "how often its gates let it see the block that holds the answer.";
  line.examples =
      "recall of a run, at the sparsity of its last step\n"
      "  tessera eval task --checkpoint runs/mqar --data data/mqar\n";
  line.options.add_options()  //
      ("checkpoint", options::value<std::string>()->value_name("DIR"),
       "a checkpoint, or a run directory for its newest one")  //
      ("data", options::value<std::string>()->value_name("DIR"),
       "a data set of tessera data task; its samples may be longer than those of the run")  //
      ("samples", options::value<int64_t>()->default_value(0)->value_name("N"),
       "only the first so many samples; 0: all")  //
      ("step", options::value<int64_t>()->default_value(0)->value_name("N"),
       "attend as in step N of the run; 0: as in the checkpoint's last step")  //
      ("precision", options::value<std::string>()->default_value("checkpoint")->value_name("KIND"),
       "f32, bf16, int4 (weights in 4 bits), or as the checkpoint was trained")  //
      ("json", options::bool_switch(), "print one JSON object");
  add_work_place(line);
  line.options.add_options()("help", options::bool_switch(), "show this text");
  return line;
}

void print(const TaskScores& scores) {
  std::cout << scores.kind << ", " << scores.samples << " samples of " << scores.length
            << " tokens, window " << scores.window << "\n"
            << "  accuracy      " << scores.accuracy << " of " << scores.answers << " answers\n"
            << "  far answers   " << scores.far_accuracy << " of " << scores.far_answers
            << " whose source is out of the window\n";
  if (scores.block_recall.empty()) return;
  std::cout << "  kept          " << scores.kept_share << " of visible blocks, of asking tokens "
            << scores.asking_kept_share << "; k = " << scores.kept_blocks << "\n  block recall ";
  for (const double recall : scores.block_recall) std::cout << " " << recall;
  std::cout << ", by layer\n";
}

}  // namespace

int run_eval(const std::vector<std::string>& arguments) {
  const CommandLine line = command_line();
  if (arguments.empty()) misuse(line.name, "expected tessera eval task");
  if (arguments[0] != "task" && arguments[0] != "--help") {
    misuse(line.name, concat("got tessera eval ", arguments[0]));
  }
  const auto values = parse_arguments(
      line,
      arguments[0] == "--help" ? arguments : std::vector(arguments.begin() + 1, arguments.end()));
  if (!values) return static_cast<int>(ExitCode::kFinished);
  for (const char* name : {"checkpoint", "data"}) {
    if (!values->count(name)) misuse(line.name, concat("--", name, " is missing"));
  }
  for (const char* name : {"samples", "step"}) {
    const auto value = (*values)[name].as<int64_t>();
    if (value < 0) misuse(line.name, concat("--", name, " is ", value, ", expected 0 or more"));
  }
  const WorkPlace place = work_place(line, *values);
  Stream stream(place.device, place.threads);
  const TaskScores scores =
      task_scores(stream, {.checkpoint = (*values)["checkpoint"].as<std::string>(),
                           .data = (*values)["data"].as<std::string>(),
                           .precision = (*values)["precision"].as<std::string>(),
                           .samples = (*values)["samples"].as<int64_t>(),
                           .step = (*values)["step"].as<int64_t>()});
  if ((*values)["json"].as<bool>()) {
    std::cout << to_json(scores) << "\n";
  } else {
    print(scores);
  }
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
