#include "launcher/commands/data_task.h"

#include <iostream>

#include "launcher/arguments.h"
#include "runtime/data/task_dataset.h"

namespace tessera {

namespace {

namespace options = boost::program_options;

CommandLine command_line() {
  CommandLine line;
  line.name = "data task";
  line.usage = "--kind KIND --length N --samples N --output DIR [options]";
  line.about =
      "Makes a data set of a synthetic task: mqar (recall of many facts), passkey (one fact in\n"
      "noise), induction (what followed last time), copy (selective copying) or arithmetic (on "
      "two\n"
      "facts). Only answers are to be predicted. docs/data.md defines the samples.";
  line.examples =
      "recall of 8 facts in samples of 256 tokens\n"
      "  tessera data task --kind mqar --length 256 --samples 50000 --output data/mqar\n"
      "what a trained model makes of it\n"
      "  tessera eval task --checkpoint runs/mqar --data data/mqar\n";
  const TaskOptions standard;
  const auto number = [](int64_t value) {
    return options::value<int64_t>()->default_value(value)->value_name("N");
  };
  line.options.add_options()  //
      ("kind", options::value<std::string>()->value_name("KIND"),
       "mqar, passkey, induction, copy or arithmetic")                                          //
      ("length", options::value<int64_t>()->value_name("N"), "tokens of a sample")              //
      ("samples", options::value<int64_t>()->value_name("N"), "samples to train on")            //
      ("validation", number(256), "samples that are held out, made from other random numbers")  //
      ("output", options::value<std::string>()->value_name("DIR"),
       "directory of the data set; made when it does not exist")                           //
      ("pairs", number(standard.pairs), "facts of a sample of mqar, copy and arithmetic")  //
      ("keys", number(standard.keys), "different keys of facts")                           //
      ("values", number(standard.values), "different values of facts")                     //
      ("noise", number(standard.noise), "different tokens of noise between them")          //
      ("modulus", number(standard.modulus), "of arithmetic")                               //
      ("seed", number(static_cast<int64_t>(standard.seed)), "of all random choices")       //
      ("overwrite", options::bool_switch(), "replace another data set in --output");
  return line;
}

TaskDatasetOptions dataset_options(const options::variables_map& values) {
  const std::string name = command_line().name;
  for (const char* required : {"kind", "length", "samples", "output"}) {
    if (values.count(required) == 0) misuse(name, concat("--", required, " is missing"));
  }
  const auto number = [&](const char* option) { return values[option].as<int64_t>(); };
  if (number("seed") < 0)
    misuse(name, concat("--seed is ", number("seed"), ", expected at least 0"));
  return {.task = {.kind = task_kind(values["kind"].as<std::string>(), "--kind"),
                   .length = number("length"),
                   .pairs = number("pairs"),
                   .keys = number("keys"),
                   .values = number("values"),
                   .noise = number("noise"),
                   .modulus = number("modulus"),
                   .seed = static_cast<uint64_t>(number("seed"))},
          .samples = number("samples"),
          .validation = number("validation"),
          .output = values["output"].as<std::string>(),
          .overwrite = values["overwrite"].as<bool>()};
}

}  // namespace

int run_data_task(const std::vector<std::string>& arguments) {
  const auto values = parse_arguments(command_line(), arguments);
  if (!values) return static_cast<int>(ExitCode::kFinished);
  const TaskDatasetOptions wanted = dataset_options(*values);
  const TaskDatasetResult result = make_task_dataset(wanted);
  const DatasetDescription& set = result.description;
  std::cout << wanted.output.string()
            << (result.already_there ? " already holds this data set" : ": data set made") << '\n'
            << "  task        " << set.task->kind << ", samples of " << set.task->length
            << " tokens, vocabulary " << set.vocabulary << '\n'
            << "  train       " << set.train.documents - 1 << " samples, "
            << set.task->train_entries << " sources of answers\n"
            << "  validation  " << set.validation.documents - 1 << " samples, "
            << set.task->validation_entries << " sources of answers\n";
  return static_cast<int>(ExitCode::kFinished);
}

}  // namespace tessera
