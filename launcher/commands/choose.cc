#include "launcher/commands/choose.h"

#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>

#include "kernels/core/log.h"
#include "launcher/job_environment.h"
#include "runtime/choose/choose_groups.h"

namespace tessera {

namespace {

constexpr const char* kName = "checkpoint choose";

int64_t at_least(const boost::program_options::variables_map& values, const char* option,
                 int64_t least) {
  const auto value = values[option].as<int64_t>();
  if (value >= least) return value;
  misuse(kName, concat("--", option, " is ", value, ", expected ", least, " or more"));
}

double rate_of(const boost::program_options::variables_map& values) {
  const auto rate = values["learning-rate"].as<double>();
  if (rate > 0 && rate <= 1) return rate;
  misuse(kName, concat("--learning-rate is ", rate, ", expected more than 0, at most 1"));
}

void expect_one_rank() {
  const JobEnvironment job = job_environment();
  if (job.ranks == 1) return;
  throw Error(ExitCode::kUsage,
              concat("tessera checkpoint choose was started with ", job.ranks,
                     " ranks, expected one, whatever mesh the run has: start it without mpirun or "
                     "srun"));
}

/// At most once in ten seconds.
std::function<void(int64_t, double)> progress_of(int64_t steps) {
  return [steps, told = std::chrono::steady_clock::now()](int64_t step, double loss) mutable {
    const auto now = std::chrono::steady_clock::now();
    if (now - told < std::chrono::seconds(10)) return;
    told = now;
    log_line(concat("step ", step, " of ", steps, " on the probe, loss ", loss));
  };
}

void print_row(const char* format, auto... values) {
  std::array<char, 128> line{};
  std::snprintf(line.data(), line.size(), format, values...);
  std::cout << line.data() << "\n";
}

void print_layer(size_t layer, const LayerChoice& choice, int64_t global_groups) {
  const std::vector<int32_t> places = places_of(choice.order);
  for (size_t group = 0; group < places.size(); ++group) {
    const double alpha = choice.alpha[group];
    const auto above =
        std::ranges::count_if(choice.alpha, [=](double other) { return other > alpha; });
    const auto equal = std::ranges::count(choice.alpha, alpha) - 1;
    const std::string reason = concat(above + 1, equal > 0 ? concat(" to ", above + 1 + equal) : "",
                                      " of ", places.size(), " by alpha");
    print_row("%5zu  %5zu  %6.4f  %-6s  %-8s  %s", layer, group, alpha,
              places[group] < global_groups ? "global" : "local",
              concat(group, " -> ", places[group]).c_str(), reason.c_str());
  }
}

/// What to do about layers in which one more group would be as good.
void print_advice(const ChooseReport& report) {
  const std::vector<SharedLayer> shared = shared_layers(report);
  for (const SharedLayer& layer : shared) {
    print_row("  layer %lld: a group is left out with alpha %.2f, the last chosen has %.2f",
              static_cast<long long>(layer.layer), layer.left_out, layer.chosen);
  }
  if (shared.empty() || report.global_groups + 1 >= std::ssize(report.layers.front().alpha)) return;
  std::cout << "  what these layers need from far away is in one group more: try --global-groups "
            << report.global_groups + 1 << "\n";
}

void print(const ChooseReport& report, const ChooseOptions& options) {
  print_row("%5s  %5s  %6s  %-6s  %-8s  %s", "layer", "group", "alpha", "role", "place", "reason");
  for (size_t layer = 0; layer < report.layers.size(); ++layer) {
    print_layer(layer, report.layers[layer], report.global_groups);
  }
  std::cout << "\nvalidation split of " << options.probe.data.string() << ", samples of "
            << report.length << " tokens, window " << report.window << ":\n";
  const auto row = [](const char* what, const ProbeLoss& probe) {
    print_row("  %-28s loss %8.4f  accuracy %.4f", what, probe.loss, probe.accuracy);
  };
  row("every group global", report.all);
  row("global groups as before", report.before);
  row("global groups as chosen", report.after);
  if (report.after.loss > report.before.loss) {
    std::cout << "  the choice is not better on this probe than what was there: give more --steps, "
                 "or another probe\n";
  }
  print_advice(report);
  std::cout << "saved " << report.checkpoint.string() << ", " << (report.bytes >> 20)
            << " MiB; tessera train with run_dir=" << options.output.string();
  if (report.global_groups != report.global_groups_before) {
    std::cout << " and model.attention.global_groups=" << report.global_groups;
  }
  std::cout << " goes on from it\n";
}

}  // namespace

CommandLine choose_command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = kName;
  line.usage = "CHECKPOINT --data DIR --output RUN [options]";
  line.about =
      "Learns which KV groups of each layer of a dense model lose most when they see a window "
      "only,\n"
      "on a data set that needs more than that (a probe), and writes the checkpoint again with "
      "these\n"
      "groups first: they are the global ones when the run turns sparse. The model computes the "
      "same\n"
      "as before (docs/gate_control.md). One process, whatever mesh the run has.";
  line.examples =
      "choose by recall, and go on\n"
      "  tessera data task --kind mqar --length 256 --output data/probe\n"
      "  tessera checkpoint choose runs/dense --data data/probe --output runs/chosen\n"
      "  tessera train dense.textproto --set run_dir=runs/chosen\n";
  line.positional = {"CHECKPOINT"};
  line.options.add_options()  //
      ("data", options::value<std::string>()->value_name("DIR"),
       "the probe: of tessera data task or tessera data prepare")  //
      ("output", options::value<std::string>()->value_name("RUN"),
       "run directory to make")  //
      ("global-groups", options::value<int64_t>()->default_value(0)->value_name("N"),
       "of each layer; 0: as many as the run has")  //
      ("steps", options::value<int64_t>()->default_value(200)->value_name("N"),
       "batches to learn from")  //
      ("batch", options::value<int64_t>()->default_value(16)->value_name("N"),
       "sequences of a batch")  //
      ("learning-rate", options::value<double>()->default_value(0.05, "0.05")->value_name("X"),
       "of alpha, in one step")  //
      ("sequence-length", options::value<int64_t>()->default_value(0)->value_name("N"),
       "tokens of a sequence; 0: of a task's sample, else as in the run")  //
      ("seed", options::value<uint64_t>()->default_value(1)->value_name("N"),
       "of the order of the sequences")  //
      ("precision", options::value<std::string>()->default_value("checkpoint")->value_name("KIND"),
       "f32, bf16, or as the checkpoint was trained")  //
      ("json", options::bool_switch(), "print one JSON object");
  add_work_place(line);
  return line;
}

int choose_checkpoint(const boost::program_options::variables_map& values) {
  expect_one_rank();
  for (const char* name : {"data", "output"}) {
    if (!values.count(name)) misuse(kName, concat("--", name, " is missing"));
    if (values[name].as<std::string>().empty()) misuse(kName, concat("--", name, " is empty"));
  }
  ChooseOptions options{.checkpoint = values["CHECKPOINT"].as<std::string>(),
                        .output = values["output"].as<std::string>(),
                        .precision = values["precision"].as<std::string>(),
                        .global_groups = at_least(values, "global-groups", 0),
                        .probe = {.data = values["data"].as<std::string>(),
                                  .length = at_least(values, "sequence-length", 0),
                                  .sequences = at_least(values, "batch", 1),
                                  .seed = values["seed"].as<uint64_t>()},
                        .steps = at_least(values, "steps", 1),
                        .rate = rate_of(values)};
  options.progress = progress_of(options.steps);
  const WorkPlace place = work_place(choose_command_line(), values);
  Stream stream(place.device, place.threads);
  const ChooseReport report = choose_groups(stream, options);
  if (values["json"].as<bool>()) {
    std::cout << to_json(report) << "\n";
  } else {
    print(report, options);
  }
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
