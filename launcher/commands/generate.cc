#include <iostream>
#include <vector>

#include "checkpoint/candidates.h"
#include "checkpoint/reader.h"
#include "kernels/core/error.h"
#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "runtime/data/tokenizer.h"
#include "runtime/generate/generator.h"
#include "runtime/train/train_state.h"

namespace tessera {

namespace {

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "generate";
  line.usage = "--checkpoint DIR [options]";
  line.about = "Continues a text with a trained model.";
  line.examples =
      "\n  tessera generate --checkpoint runs/quickstart --prompt 'template <' --tokens 200\n";
  line.options.add_options()  //
      ("checkpoint", options::value<std::string>()->value_name("DIR"),
       "a checkpoint, or a run directory for its newest one")  //
      ("prompt", options::value<std::string>()->default_value("")->value_name("TEXT"),
       "what the text begins with; without it a new document begins")  //
      ("tokens", options::value<int64_t>()->default_value(200)->value_name("N"),
       "tokens to draw at most; a document's end stops it earlier")  //
      ("temperature", options::value<double>()->default_value(0.8, "0.8")->value_name("T"),
       "0: always the most likely token; 1: as the model says")  //
      ("top-p", options::value<double>()->default_value(0.95, "0.95")->value_name("P"),
       "only the most likely tokens that together have this probability")  //
      ("seed", options::value<uint64_t>()->default_value(1)->value_name("N"),
       "the same seed draws the same text")  //
      ("precision", options::value<std::string>()->default_value("checkpoint")->value_name("KIND"),
       "f32, bf16, or as the checkpoint was trained");
  add_work_place(line);
  line.options.add_options()("help", options::bool_switch(), "show this text");
  return line;
}

SamplerOptions sampler_options(const CommandLine& line,
                               const boost::program_options::variables_map& values) {
  const SamplerOptions options{.temperature = values["temperature"].as<double>(),
                               .top_p = values["top-p"].as<double>(),
                               .seed = values["seed"].as<uint64_t>()};
  if (!(options.temperature >= 0)) {
    misuse(line.name, concat("--temperature is ", options.temperature, ", expected 0 or more"));
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    misuse(line.name, concat("--top-p is ", options.top_p, ", expected above 0 and at most 1"));
  }
  return options;
}

}  // namespace

int run_generate(const std::vector<std::string>& arguments) {
  const CommandLine line = command_line();
  const auto values = parse_arguments(line, arguments);
  if (!values) return static_cast<int>(ExitCode::kFinished);
  if (!values->count("checkpoint")) misuse(line.name, "--checkpoint is missing");
  const int64_t count = (*values)["tokens"].as<int64_t>();
  if (count < 1) misuse(line.name, concat("--tokens is ", count, ", expected at least 1"));
  const SamplerOptions options = sampler_options(line, *values);

  const WorkPlace place = work_place(line, *values);
  Stream stream(place.device, place.threads);
  const std::filesystem::path checkpoint =
      find_checkpoint((*values)["checkpoint"].as<std::string>());
  const LoadedModel loaded =
      load_model(stream, checkpoint, {.precision = (*values)["precision"].as<std::string>()});
  const Tokenizer tokenizer = Tokenizer::from_model(
      CheckpointReader(checkpoint).read_blob(kTokenizerBlob), checkpoint.string());
  const std::string text = (*values)["prompt"].as<std::string>();
  std::vector<int32_t> prompt;
  tokenizer.encode(text, prompt);
  if (prompt.empty()) prompt.push_back(tokenizer.end_of_document());
  Generator generator(loaded, stream, static_cast<int64_t>(prompt.size()) + count);
  std::vector<int32_t> tokens;
  generator.run(prompt, count, tokenizer.end_of_document(), options,
                [&](int32_t token) { tokens.push_back(token); });
  std::cout << text << tokenizer.decode(tokens) << "\n";
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
