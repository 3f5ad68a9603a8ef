#include <iostream>

#include "kernels/core/error.h"
#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "runtime/score/score.h"

namespace tessera {

namespace {

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "score";
  line.usage = "--checkpoint DIR --input FILE --output FILE [options]";
  line.about =
      "Computes logits, losses and gradients of given tokens, so that any other program can check\n"
      "them. Input and output are safetensors files; their tensors are in docs/score.md.";
  line.examples =
      "logits, loss and the gradient of every parameter, in single precision\n"
      "  tessera score --checkpoint runs/quickstart --input tokens.safetensors \\\n"
      "    --output scores.safetensors --gradients --precision f32\n";
  line.options.add_options()  //
      ("checkpoint", options::value<std::string>()->value_name("DIR"),
       "a checkpoint, or a run directory for its newest one")  //
      ("input", options::value<std::string>()->value_name("FILE"),
       "safetensors with `tokens`, i32 [batch, time]")                                       //
      ("output", options::value<std::string>()->value_name("FILE"), "safetensors to write")  //
      ("gradients", options::bool_switch(), "also the gradient of every parameter")          //
      ("precision", options::value<std::string>()->default_value("checkpoint")->value_name("KIND"),
       "f32, bf16, int4 (weights in 4 bits), or as the checkpoint was trained")  //
      ("step", options::value<int64_t>()->default_value(0)->value_name("N"),
       "attend as in step N of the run; 0: as in the checkpoint's last step");
  add_work_place(line);
  line.options.add_options()("help", options::bool_switch(), "show this text");
  return line;
}

}  // namespace

int run_score(const std::vector<std::string>& arguments) {
  const CommandLine line = command_line();
  const auto values = parse_arguments(line, arguments);
  if (!values) return static_cast<int>(ExitCode::kFinished);
  for (const char* name : {"checkpoint", "input", "output"}) {
    if (!values->count(name)) misuse(line.name, concat("--", name, " is missing"));
  }
  const int64_t step = (*values)["step"].as<int64_t>();
  if (step < 0) misuse(line.name, concat("--step is ", step, ", expected 0 or more"));
  const WorkPlace place = work_place(line, *values);
  Stream stream(place.device, place.threads);
  const ScoreResult result = score(stream, {.checkpoint = (*values)["checkpoint"].as<std::string>(),
                                            .input = (*values)["input"].as<std::string>(),
                                            .output = (*values)["output"].as<std::string>(),
                                            .precision = (*values)["precision"].as<std::string>(),
                                            .gradients = (*values)["gradients"].as<bool>(),
                                            .step = step});
  std::cout << "loss " << result.loss << " nats over " << result.targets
            << " targets, auxiliary losses " << result.auxiliary << ", written to "
            << (*values)["output"].as<std::string>() << "\n";
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
