#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "checkpoint/candidates.h"
#include "checkpoint/reader.h"
#include "kernels/core/error.h"
#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "runtime/data/text_source.h"
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
  line.about = "Continues a text with a trained model, or many texts at once.";
  line.examples =
      "\n  tessera generate --checkpoint runs/quickstart --prompt 'template <' --tokens 200\n"
      "four texts for each line {\"prompt\": \"...\"} of a file, 32 at a time\n"
      "  tessera generate --checkpoint runs/quickstart --prompts prompts.jsonl --samples 4 \\\n"
      "    --batch 32 > texts.jsonl\n";
  line.options.add_options()  //
      ("checkpoint", options::value<std::string>()->value_name("DIR"),
       "a checkpoint, or a run directory for its newest one")  //
      ("prompt", options::value<std::string>()->default_value("")->value_name("TEXT"),
       "what the text begins with; without it a new document begins")  //
      ("prompts", options::value<std::string>()->value_name("FILE"),
       "JSON lines with a field `prompt`, or any other file as one prompt; prints lines of JSON, "
       "in order")  //
      ("samples", options::value<int64_t>()->default_value(1)->value_name("N"),
       "texts for each prompt; more than one are printed as JSON")  //
      ("batch", options::value<int64_t>()->default_value(16)->value_name("N"),
       "texts to continue at a time, at most")  //
      ("tokens", options::value<int64_t>()->default_value(200)->value_name("N"),
       "tokens to draw at most; a document's end stops it earlier")  //
      ("temperature", options::value<double>()->default_value(0.8, "0.8")->value_name("T"),
       "0: always the most likely token; 1: as the model says")  //
      ("top-p", options::value<double>()->default_value(0.95, "0.95")->value_name("P"),
       "only the most likely tokens that together have this probability")  //
      ("seed", options::value<uint64_t>()->default_value(1)->value_name("N"),
       "the same seed draws the same text; of several texts the next one has the next seed")  //
      ("precision", options::value<std::string>()->default_value("checkpoint")->value_name("KIND"),
       "f32, bf16, int4 (weights in 4 bits), or as the checkpoint was trained");
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

std::vector<std::string> prompts_of(const boost::program_options::variables_map& values) {
  if (!values.count("prompts")) return {values["prompt"].as<std::string>()};
  const std::filesystem::path file = values["prompts"].as<std::string>();
  TextSource source(list_text_files({&file, 1}, "--prompts"),
                    {.json_field = "prompt", .option = "--prompts", .way_out = "mend it"});
  std::vector<std::string> prompts;
  for (std::string prompt; source.next(prompt);) prompts.push_back(prompt);
  if (prompts.empty()) {
    throw Error(ExitCode::kUsage,
                concat("--prompts ", file.string(), " has no prompts, expected lines like ",
                       "{\"prompt\": \"once upon a time\"}"));
  }
  return prompts;
}

int64_t at_least_one(const CommandLine& line, const boost::program_options::variables_map& values,
                     const char* name) {
  const auto count = values[name].as<int64_t>();
  if (count < 1) misuse(line.name, concat("--", name, " is ", count, ", expected at least 1"));
  return count;
}

/// `samples` requests for each prompt, each with the next seed: with the same one texts of a model
/// that does not know much begin alike.
std::vector<GenerateRequest> requests_of(const std::vector<std::string>& prompts,
                                         const Tokenizer& tokenizer, int64_t samples,
                                         int64_t tokens, const SamplerOptions& sampler) {
  std::vector<GenerateRequest> requests;
  for (const std::string& text : prompts) {
    GenerateRequest request{.prompt = {}, .tokens = tokens, .sampler = sampler};
    tokenizer.encode(text, request.prompt);
    if (request.prompt.empty()) request.prompt.push_back(tokenizer.end_of_document());
    for (int64_t sample = 0; sample < samples; ++sample) {
      request.sampler.seed = sampler.seed + requests.size();
      requests.push_back(request);
    }
  }
  return requests;
}

/// Hands texts on in the order of their requests, however they come.
class InOrder {
 public:
  using OnText = std::function<void(size_t, const GeneratedText&)>;

  explicit InOrder(OnText next) : on_text_(std::move(next)) {}
  void add(size_t number, const GeneratedText& text) {
    waiting_.emplace(number, text);
    for (; !waiting_.empty() && waiting_.begin()->first == next_; ++next_) {
      on_text_(next_, waiting_.begin()->second);
      waiting_.erase(waiting_.begin());
    }
  }

 private:
  OnText on_text_;
  std::map<size_t, GeneratedText> waiting_;
  size_t next_ = 0;
};

/// Bytes that are no UTF-8 become U+FFFD.
void print_json(const std::string& prompt, uint64_t seed, const GeneratedText& text,
                const Tokenizer& tokenizer) {
  const nlohmann::ordered_json line{{"prompt", prompt},
                                    {"seed", seed},
                                    {"text", tokenizer.decode(text.tokens)},
                                    {"tokens", text.tokens.size()},
                                    {"ended", text.ended}};
  std::cout << line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n"
            << std::flush;
}

/// What the texts took, for the terminal: standard output has nothing but them.
void print_speed(std::span<const GenerateRequest> requests, int64_t drawn, int64_t at_a_time,
                 std::chrono::duration<double> time) {
  int64_t read = 0;
  for (const GenerateRequest& request : requests) read += std::ssize(request.prompt);
  std::cerr << requests.size() << " texts, " << at_a_time << " at a time: " << read
            << " tokens read and " << drawn << " drawn in " << time.count() << " s, "
            << static_cast<double>(read + drawn) / time.count() << " tokens/s\n";
}

}  // namespace

int run_generate(const std::vector<std::string>& arguments) {
  const CommandLine line = command_line();
  const auto values = parse_arguments(line, arguments);
  if (!values) return static_cast<int>(ExitCode::kFinished);
  if (!values->count("checkpoint")) misuse(line.name, "--checkpoint is missing");
  if (values->count("prompts") && !(*values)["prompt"].defaulted()) {
    misuse(line.name, "--prompt and --prompts are both given, expected one");
  }
  const int64_t count = at_least_one(line, *values, "tokens");
  const int64_t samples = at_least_one(line, *values, "samples");
  const int64_t batch = at_least_one(line, *values, "batch");
  const SamplerOptions sampler = sampler_options(line, *values);
  const std::vector<std::string> prompts = prompts_of(*values);

  const WorkPlace place = work_place(line, *values);
  Stream stream(place.device, place.threads);
  const std::filesystem::path checkpoint =
      find_checkpoint((*values)["checkpoint"].as<std::string>());
  const LoadedModel loaded =
      load_model(stream, checkpoint,
                 {.precision = (*values)["precision"].as<std::string>(), .capacities = false});
  const Tokenizer tokenizer = Tokenizer::from_model(
      CheckpointReader(checkpoint).read_blob(kTokenizerBlob), checkpoint.string());
  const std::vector<GenerateRequest> requests =
      requests_of(prompts, tokenizer, samples, count, sampler);
  CacheSize size{.sequences = std::min(batch, std::ssize(requests)), .tokens = 0};
  for (const GenerateRequest& request : requests) {
    size.tokens = std::max(size.tokens, std::ssize(request.prompt) + count);
  }
  Generator generator(loaded, stream, size);
  const bool json = values->count("prompts") > 0 || samples > 1;
  int64_t drawn = 0;
  InOrder texts([&](size_t number, const GeneratedText& text) {
    const auto prompt = static_cast<int64_t>(number) / samples;
    const std::string& begin = prompts[static_cast<size_t>(prompt)];
    drawn += std::ssize(text.tokens);
    if (json) {
      print_json(begin, requests[number].sampler.seed, text, tokenizer);
    } else {
      std::cout << begin << tokenizer.decode(text.tokens) << "\n";
    }
  });
  const auto begin = std::chrono::steady_clock::now();
  generator.run(requests, tokenizer.end_of_document(),
                [&](size_t number, const GeneratedText& text) { texts.add(number, text); });
  if (json) {
    print_speed(requests, drawn, size.sequences, std::chrono::steady_clock::now() - begin);
  }
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
