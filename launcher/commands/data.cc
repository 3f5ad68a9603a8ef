#include <iostream>
#include <string>
#include <vector>

#include "launcher/arguments.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/data_score.h"
#include "launcher/commands/data_task.h"
#include "runtime/data/prepare.h"

namespace tessera {

namespace {

CommandLine command_line() {
  namespace options = boost::program_options;
  CommandLine line;
  line.name = "data prepare";
  line.usage = "--input PATH... --output DIR [options]";
  line.about =
      "Makes a data set for training from text files, JSON lines (*.jsonl, *.ndjson) and\n"
      "directories of them, such as source trees. Hidden, binary and unreadable files in\n"
      "directories are skipped. Run again with the same inputs, it only looks.";
  line.examples =
      "the C++ headers of this machine, one token per byte\n"
      "  tessera data prepare --input /usr/include/c++ --output data/headers\n"
      "JSON lines, with a tokenizer of 32,000 tokens trained on them\n"
      "  tessera data prepare --input shards/ --output data/web --tokenizer train:32000\n";
  line.options.add_options()  //
      ("input",
       options::value<std::vector<std::string>>()->multitoken()->composing()->value_name("PATH..."),
       "files and directories to read, in this order")  //
      ("output", options::value<std::string>()->value_name("DIR"),
       "directory of the data set; made when it does not exist")  //
      ("tokenizer", options::value<std::string>()->default_value("byte")->value_name("KIND"),
       "byte; or the path of a SentencePiece model; or train:VOCABULARY, which trains one")  //
      ("validation", options::value<double>()->default_value(0.02, "0.02")->value_name("SHARE"),
       "share of the documents that is held out for validation")  //
      ("seed", options::value<int64_t>()->default_value(1)->value_name("N"),
       "of the choice of those documents")  //
      ("json-field", options::value<std::string>()->default_value("text")->value_name("NAME"),
       "field of a JSON line that holds its text")  //
      ("on-bad-line", options::value<std::string>()->default_value("stop")->value_name("POLICY"),
       "stop at a JSON line that cannot be used, or skip it")  //
      ("overwrite", options::bool_switch(), "replace another data set in --output");
  return line;
}

PrepareOptions prepare_options(const boost::program_options::variables_map& values) {
  const std::string name = command_line().name;
  for (const char* required : {"input", "output"}) {
    if (values.count(required) == 0) misuse(name, concat("--", required, " is missing"));
  }
  const auto seed = values["seed"].as<int64_t>();
  if (seed < 0) misuse(name, concat("--seed is ", seed, ", expected at least 0"));
  const auto& policy = values["on-bad-line"].as<std::string>();
  if (policy != "stop" && policy != "skip") {
    misuse(name, concat("--on-bad-line is ", policy, ", expected stop or skip"));
  }
  PrepareOptions prepare;
  for (const std::string& path : values["input"].as<std::vector<std::string>>()) {
    prepare.inputs.emplace_back(path);
  }
  prepare.output = values["output"].as<std::string>();
  prepare.tokenizer = values["tokenizer"].as<std::string>();
  prepare.validation = values["validation"].as<double>();
  prepare.seed = static_cast<uint64_t>(seed);
  prepare.text = {.json_field = values["json-field"].as<std::string>(),
                  .skip_bad_lines = policy == "skip"};
  prepare.overwrite = values["overwrite"].as<bool>();
  return prepare;
}

void print(const PrepareOptions& prepare, const PrepareResult& result) {
  const DatasetDescription& set = result.description;
  std::cout << prepare.output.string()
            << (result.already_there ? " already holds this data set" : ": data set made") << '\n'
            << "  sources     " << set.source_files << " files, " << set.source_documents
            << " documents, " << set.source_bytes << " bytes of text; skipped " << set.skipped_files
            << " files and " << set.skipped_lines << " lines\n"
            << "  tokenizer   " << set.tokenizer << ", vocabulary " << set.vocabulary << '\n'
            << "  train       " << set.train.tokens << " tokens in " << set.train.documents
            << " documents\n"
            << "  validation  " << set.validation.tokens << " tokens in "
            << set.validation.documents << " documents\n";
}

}  // namespace

int run_data(const std::vector<std::string>& arguments) {
  if (arguments.empty()) {
    misuse("data prepare", "expected tessera data prepare, data task or data score");
  }
  if (arguments[0] == "task") return run_data_task({arguments.begin() + 1, arguments.end()});
  if (arguments[0] == "score") return run_data_score({arguments.begin() + 1, arguments.end()});
  if (arguments[0] != "prepare" && arguments[0] != "--help") {
    misuse("data prepare", concat("got tessera data ", arguments[0]));
  }
  const auto values = parse_arguments(
      command_line(),
      arguments[0] == "--help" ? arguments : std::vector(arguments.begin() + 1, arguments.end()));
  if (!values) return static_cast<int>(ExitCode::kFinished);
  const PrepareOptions prepare = prepare_options(*values);
  print(prepare, prepare_dataset(prepare));
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
