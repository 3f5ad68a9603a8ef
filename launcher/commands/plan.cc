#include <iomanip>
#include <iostream>
#include <sstream>

#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "runtime/config/config.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/mesh_plan.h"
#include "runtime/train/mesh_search.h"

namespace tessera {

namespace {

constexpr int kMostRanks = 1 << 16;

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "plan";
  line.usage = "CONFIG [options]";
  line.about =
      "Lists the meshes that suit a configuration, best first, without starting any rank: the "
      "bytes\n"
      "of the rank that needs most, what it sends in a step, and estimated times (docs/plan.md).";
  line.examples =
      "how should 384 GPUs of 141 GB share this model?\n"
      "  tessera plan configs/moe-100b-384gpu.textproto --gpus 384 --hardware h200\n";
  line.options.add_options()  //
      ("config", options::value<std::string>()->value_name("FILE"),
       "text-format configuration (docs/configuration.md)")  //
      ("set", options::value<std::vector<std::string>>()->composing()->value_name("A.B=VALUE"),
       "set one field of the configuration; may be given many times")  //
      ("ranks", options::value<int>()->value_name("N"),
       "ranks of the job; default: those of the configuration's mesh")                    //
      ("gpus", options::value<int>()->value_name("N"), "the same, one rank on each GPU")  //
      ("hardware", options::value<std::string>()->default_value("h100")->value_name("NAME"),
       "h200, h100, a100 or cpu: memory and rates of a rank")                               //
      ("top", options::value<int>()->default_value(5)->value_name("N"), "meshes to print")  //
      ("help", options::bool_switch(), "show this text");
  line.positional = {"config"};
  return line;
}

std::string set_line(const MeshShape& shape) {
  return concat("--set mesh.data=", shape.data, " --set mesh.expert=", shape.expert,
                " --set mesh.sequence=", shape.sequence, " --set mesh.tensor=", shape.tensor);
}

// "64.65 GB", "3.20 MB"
std::string amount(int64_t bytes) {
  const bool large = bytes >= 100'000'000;
  std::ostringstream out;
  out << std::fixed << std::setprecision(2) << static_cast<double>(bytes) / (large ? 1e9 : 1e6)
      << (large ? " GB" : " MB");
  return out.str();
}

void print_memory(const MemoryPlan& memory) {
  std::cout << "   memory of rank " << memory.rank << ": " << amount(memory.total())
            << " = parameters " << amount(memory.parameters) << " + gradients "
            << amount(memory.gradients) << " + optimizer " << amount(memory.optimizer)
            << " + activations " << amount(memory.activations) << " + communication "
            << amount(memory.communication) << "\n";
}

void print_traffic(const StepTraffic& step) {
  std::cout << "   sends " << amount(step.sent()) << " in a " << name_of(step.stage) << " step:";
  const char* comma = " ";
  for (const GroupTraffic& group : step.groups) {
    std::cout << comma << group.group << " " << amount(group.traffic.sent);
    comma = ", ";
  }
  std::cout << "\n";
}

void print(const MeshSearch& search, const Hardware& hardware, int ranks) {
  std::cout << search.feasible << " meshes of " << ranks
            << " ranks divide the model and its batch. "
            << "Memory of " << hardware.name << ": " << hardware.memory / 1e9 << " GB a rank, of "
            << "which " << kUsableMemory * hardware.memory / 1e9 << " can be filled.\n";
  int place = 0;
  for (const MeshChoice& choice : search.best) {
    std::cout << "\n" << ++place << ". " << to_string(choice.shape);
    if (!choice.fits) {
      std::cout << "  DOES NOT FIT; lower batch.micro_sequences, set runtime.recompute=BLOCK or "
                   "use more ranks";
    }
    std::cout << "\n   " << set_line(choice.shape) << "\n   about " << std::setprecision(3)
              << choice.seconds() << " s a step: arithmetic " << choice.compute << ", exchanges "
              << choice.exchange << "\n";
    print_memory(choice.largest.memory);
    for (const StepTraffic& step : first_and_last(choice.largest.steps)) print_traffic(step);
  }
}

}  // namespace

int run_plan(const std::vector<std::string>& arguments) {
  const CommandLine line = command_line();
  const auto values = parse_arguments(line, arguments);
  if (!values) return static_cast<int>(ExitCode::kFinished);
  std::vector<std::string> overrides;
  if (values->count("set")) overrides = (*values)["set"].as<std::vector<std::string>>();
  if (values->count("ranks") && values->count("gpus")) {
    misuse(line.name, "--ranks and --gpus are the same; give one of them");
  }
  const Hardware& hardware = find_hardware((*values)["hardware"].as<std::string>());
  const int top = (*values)["top"].as<int>();
  if (top < 1) misuse(line.name, concat("--top is ", top, ", expected at least 1"));
  const TrainConfig config = load_train_config((*values)["config"].as<std::string>(), overrides);
  int ranks = described_ranks(config);
  for (const char* name : {"ranks", "gpus"}) {
    if (!values->count(name)) continue;
    ranks = (*values)[name].as<int>();
    if (ranks < 1 || ranks > kMostRanks) {
      misuse(line.name, concat("--", name, " is ", ranks, ", expected 1 to ", kMostRanks));
    }
  }
  print(search_meshes(config, ranks, hardware, static_cast<size_t>(top)), hardware, ranks);
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
