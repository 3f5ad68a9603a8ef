#include "launcher/commands/export.h"

#include <filesystem>
#include <iostream>

#include "launcher/byte_size.h"
#include "runtime/export/export_model.h"

namespace tessera {

CommandLine export_command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "checkpoint export";
  line.usage = "CHECKPOINT --output DIR [options]";
  line.about =
      "Writes a model as Hugging Face's transformers read it: DIR/model.safetensors, or several\n"
      "files with an index, and DIR/config.json. Which architecture it becomes is in\n"
      "docs/export.md. The way back is tessera checkpoint import.";
  line.examples =
      "the newest checkpoint of a run\n"
      "  tessera checkpoint export runs/small --output exported/small --precision bf16\n";
  line.positional = {"CHECKPOINT"};
  line.options.add_options()                                                              //
      ("output", options::value<std::string>()->value_name("DIR"), "directory to write")  //
      ("precision", options::value<std::string>()->default_value("checkpoint")->value_name("KIND"),
       "f32, bf16, or as the checkpoint was trained")  //
      ("shard-size", options::value<std::string>()->default_value("5GB")->value_name("SIZE"),
       "tensors in one file at most: B, KB, MB, GB, TB, KiB, MiB, GiB or TiB")        //
      ("gates", options::bool_switch(), "also the parameters of the sparsity gates")  //
      ("strict", options::bool_switch(), "refuse a model that transformers cannot compute");
  return line;
}

int export_checkpoint(const boost::program_options::variables_map& values) {
  if (!values.count("output")) misuse("checkpoint export", "--output is missing");
  const std::filesystem::path output = values["output"].as<std::string>();
  if (output.empty()) misuse("checkpoint export", "--output is empty");
  const ExportReport report = export_model(
      values["CHECKPOINT"].as<std::string>(), output,
      {.precision = values["precision"].as<std::string>(),
       .gates = values["gates"].as<bool>(),
       .strict = values["strict"].as<bool>(),
       .shard_bytes = parse_byte_size(values["shard-size"].as<std::string>(), "--shard-size")});
  std::cout << report.remarks << class_name(report.architecture) << " with " << report.tensors
            << " tensors of step " << report.step << ", " << name_of(report.dtype)
            << ", written to " << output.string();
  if (report.files > 1) std::cout << " in " << report.files << " files";
  std::cout << "\n";
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
