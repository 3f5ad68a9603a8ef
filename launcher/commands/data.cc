#include <boost/program_options.hpp>
#include <iostream>
#include <string>
#include <vector>

#include "launcher/commands/commands.h"
#include "runtime/data/prepare.h"

namespace tessera {

namespace {

namespace options = boost::program_options;

constexpr const char* kUsageText =
    R"(usage: tessera data prepare --input PATH... --output DIR [options]

Makes a data set for training from text files, JSON lines (*.jsonl, *.ndjson) and directories of
them, such as source trees. Hidden, binary and unreadable files in directories are skipped.

)";

constexpr const char* kExampleText = R"(
example: a data set of the C++ headers of this machine, one token per byte
  tessera data prepare --input /usr/include/c++ --output data/headers

example: JSON lines with a tokenizer of 32,000 tokens trained on them
  tessera data prepare --input shards/ --output data/web --tokenizer train:32000
)";

options::options_description describe() {
  options::options_description description("options", 98);
  description.add_options()  //
      ("input", options::value<std::vector<std::string>>()->multitoken()->value_name("PATH..."),
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
       "stop at a JSON line that cannot be used, or skip it")                        //
      ("overwrite", options::bool_switch(), "replace another data set in --output")  //
      ("help", options::bool_switch(), "show this text");
  return description;
}

options::variables_map parse(const options::options_description& description,
                             const std::vector<std::string>& arguments) {
  namespace style = options::command_line_style;
  options::variables_map values;
  try {
    options::store(options::command_line_parser(arguments)
                       .options(description)
                       .style(style::unix_style & ~style::allow_guessing)
                       .positional({})
                       .run(),
                   values);
  } catch (const options::error& problem) {
    throw Error(ExitCode::kUsage, concat("tessera data prepare: ", problem.what(),
                                         "; see tessera data prepare --help"));
  }
  return values;
}

PrepareOptions prepare_options(const options::variables_map& values) {
  for (const char* required : {"input", "output"}) {
    if (values.count(required) > 0) continue;
    throw Error(ExitCode::kUsage, concat("tessera data prepare: --", required,
                                         " is missing; see tessera data prepare --help"));
  }
  const auto seed = values["seed"].as<int64_t>();
  if (seed < 0) {
    throw Error(ExitCode::kUsage, concat("--seed is ", seed, ", expected at least 0"));
  }
  const auto& policy = values["on-bad-line"].as<std::string>();
  if (policy != "stop" && policy != "skip") {
    throw Error(ExitCode::kUsage, concat("--on-bad-line is ", policy, ", expected stop or skip"));
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
  const options::options_description description = describe();
  const bool asks_help = arguments.size() == 1 && arguments[0] == "--help";
  if (!asks_help && (arguments.empty() || arguments[0] != "prepare")) {
    throw Error(ExitCode::kUsage,
                concat("tessera data: ", arguments.empty() ? "nothing to do" : arguments[0],
                       ", expected prepare; see tessera data prepare --help"));
  }
  const options::variables_map values = parse(
      description, asks_help ? arguments : std::vector(arguments.begin() + 1, arguments.end()));
  if (values["help"].as<bool>()) {
    std::cout << kUsageText << description << kExampleText;
    return static_cast<int>(ExitCode::kFinished);
  }
  const PrepareOptions prepare = prepare_options(values);
  print(prepare, prepare_dataset(prepare));
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
