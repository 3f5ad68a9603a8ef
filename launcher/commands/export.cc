#include "launcher/commands/export.h"

#include <filesystem>
#include <iostream>

#include "checkpoint/file_io.h"
#include "runtime/config/train.pb.h"
#include "runtime/export/hugging_face.h"
#include "runtime/generate/loaded_model.h"

namespace tessera {

namespace {

constexpr const char* kTensors = "model.safetensors";
constexpr const char* kConfig = "config.json";

// What the files do not say of the model. Empty: they say all.
std::string left_out(const LoadedModel& loaded, bool gates) {
  const TrainConfig& config = *loaded.config;
  std::string text;
  const std::string obstacle = hugging_face_obstacle(config.model());
  if (!obstacle.empty()) {
    text += concat("No architecture of transformers computes this model, because ", obstacle,
                   ": it is written as ", class_name(HuggingFaceArchitecture::kTessera),
                   ", with further tensors.\n");
  }
  int64_t tensors = 0;
  int64_t elements = 0;
  for (const Parameter& parameter : loaded.store->all()) {
    if (!is_gate_parameter(parameter.name)) continue;
    ++tensors;
    elements += parameter.value.elements();
  }
  if (!gates && tensors > 0) {
    text += concat(tensors, " tensors of sparsity gates with ", elements,
                   " parameters are left out; --gates writes them, too.\n");
  }
  if (loaded.step > config.sparsity().dense_steps()) {
    text +=
        concat("The model has attended sparsely since step ", config.sparsity().dense_steps() + 1,
               "; transformers attends to every token, so its logits differ.\n");
  }
  return text;
}

void check_free(const std::filesystem::path& directory) {
  for (const char* name : {kTensors, kConfig}) {
    if (!std::filesystem::exists(directory / name)) continue;
    throw Error(ExitCode::kUsage, concat(directory.string(), " already has ", name,
                                         ": give another directory or remove it"));
  }
}

}  // namespace

CommandLine export_command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "checkpoint export";
  line.usage = "CHECKPOINT --output DIR [options]";
  line.about =
      "Writes a model as Hugging Face's transformers read it: DIR/model.safetensors and\n"
      "DIR/config.json. Which architecture it becomes is in docs/export.md.";
  line.examples =
      "the newest checkpoint of a run\n"
      "  tessera checkpoint export runs/small --output exported/small --precision bf16\n";
  line.positional = {"CHECKPOINT"};
  line.options.add_options()                                                              //
      ("output", options::value<std::string>()->value_name("DIR"), "directory to write")  //
      ("precision", options::value<std::string>()->default_value("checkpoint")->value_name("KIND"),
       "f32, bf16, or as the checkpoint was trained")                                 //
      ("gates", options::bool_switch(), "also the parameters of the sparsity gates")  //
      ("strict", options::bool_switch(), "refuse a model that transformers cannot compute");
  return line;
}

int export_checkpoint(const boost::program_options::variables_map& values) {
  if (!values.count("output")) misuse("checkpoint export", "--output is missing");
  const std::filesystem::path output = values["output"].as<std::string>();
  if (output.empty()) misuse("checkpoint export", "--output is empty");
  const bool gates = values["gates"].as<bool>();
  check_free(output);
  Stream stream(Device{}, 1);
  const LoadedModel loaded = load_model(stream, values["CHECKPOINT"].as<std::string>(),
                                        {.precision = values["precision"].as<std::string>()});
  const ModelConfig& model = loaded.config->model();
  if (values["strict"].as<bool>() && !hugging_face_obstacle(model).empty()) {
    throw Error(ExitCode::kUsage,
                concat("no architecture of transformers computes this model, "
                       "because ",
                       hugging_face_obstacle(model), ": export it without --strict"));
  }
  const WholeParameters parameters(*loaded.store, WholeParameters::Of::kValues);
  const auto tensors = hugging_face_tensors(model, parameters, gates);
  make_directories(output);
  // transformers refuses a file that does not say "pt"; the layout is the same for all.
  write_safetensors(output / kTensors, tensors, {{"format", "pt"}});
  // Last: a directory with a configuration is whole.
  Directory(output).replace(kConfig, hugging_face_config(*loaded.config, loaded.dtype));
  std::cout << left_out(loaded, gates) << class_name(hugging_face_architecture(model)) << " with "
            << tensors.size() << " tensors of step " << loaded.step << ", " << name_of(loaded.dtype)
            << ", written to " << output.string() << "\n";
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
