#include "launcher/commands/import.h"

#include <filesystem>
#include <iostream>

#include "checkpoint/name_list.h"
#include "runtime/config/config.h"
#include "runtime/config/train.pb.h"
#include "runtime/import/import_model.h"

namespace tessera {

namespace {

void print(const ImportReport& report, const TrainConfig& config) {
  if (!report.initialised.empty()) {
    std::cout << report.initialised.size()
              << " parameters are not in the files and begin as in a new run, with seed "
              << config.seed() << ": " << first_few(report.initialised) << "\n";
  }
  if (!report.passed_over.empty()) {
    std::cout << report.passed_over.size()
              << " tensors say nothing of their own: " << first_few(report.passed_over) << "\n";
  }
  std::cout << class_name(report.architecture) << " with " << report.tensors << " tensors in "
            << report.files << (report.files == 1 ? " file: " : " files: ") << report.parameters
            << " parameters, text in the tokens of " << report.tokenizer << "\nsaved "
            << report.checkpoint.string() << ", " << (report.bytes >> 20)
            << " MiB; tessera train with run_dir=" << config.run_dir() << " goes on from it\n";
}

}  // namespace

CommandLine import_command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "checkpoint import";
  line.usage = "HF_DIR --config FILE [options]";
  line.about =
      "Makes step 0 of a run from a model of Hugging Face: HF_DIR has config.json and\n"
      "model.safetensors, or several files and their index. Llama, Mistral, Qwen3, Mixtral,\n"
      "Qwen3-MoE and what tessera checkpoint export writes (docs/export.md). The configuration\n"
      "must describe the same model; what the files do not have, as the gates of sparse\n"
      "attention, begins as in a new run.";
  line.examples =
      "take a model, and make it sparse\n"
      "  tessera checkpoint import models/llama --print-config > llama.textproto\n"
      "  tessera checkpoint import models/llama --config llama-run.textproto\n"
      "  tessera train llama-run.textproto\n";
  line.positional = {"HF_DIR"};
  line.options.add_options()  //
      ("config", options::value<std::string>()->value_name("FILE"),
       "configuration of the run, as for tessera train")  //
      ("set", options::value<std::vector<std::string>>()->composing()->value_name("A.B=VALUE"),
       "set one field of the configuration; may be given many times")                           //
      ("run", options::value<std::string>()->value_name("DIR"), "short for --set run_dir=DIR")  //
      ("seed", options::value<uint64_t>()->value_name("N"),
       "short for --set seed=N: of what the files do not have")  //
      ("print-config", options::bool_switch(),
       "print the model part of a configuration that fits, and stop");
  return line;
}

int import_checkpoint(const boost::program_options::variables_map& values) {
  const std::filesystem::path source = values["HF_DIR"].as<std::string>();
  if (values["print-config"].as<bool>()) {
    std::cout << suggested_model(source);
    return static_cast<int>(ExitCode::kFinished);
  }
  if (!values.count("config")) misuse("checkpoint import", "--config is missing");
  std::vector<std::string> overrides;
  if (values.count("set")) overrides = values["set"].as<std::vector<std::string>>();
  if (values.count("run")) overrides.push_back("run_dir=" + values["run"].as<std::string>());
  if (values.count("seed")) overrides.push_back(concat("seed=", values["seed"].as<uint64_t>()));
  const std::string file = values["config"].as<std::string>();
  TrainConfig config = load_train_config(file, overrides);
  resolve_mesh(config, described_ranks(config));
  print(import_model(config, {.source = source, .config_name = file}), config);
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
