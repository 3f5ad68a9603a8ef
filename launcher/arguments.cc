#include "launcher/arguments.h"

#include <algorithm>
#include <iostream>

#include "kernels/core/error.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

namespace options = boost::program_options;

// Takes the arguments that are one too many, so that they can be named.
constexpr const char* kTooMany = "argument too many";

bool has(const options::options_description& description, const std::string& name) {
  return description.find_nothrow(name, /*approx=*/false) != nullptr;
}

void print_help(const CommandLine& line) {
  options::options_description shown_options = line.options;
  if (!has(shown_options, "help")) shown_options.add_options()("help", "show this text");
  std::cout << "usage: tessera " << line.name << " " << line.usage << "\n\n"
            << line.about << "\n\n"
            << shown_options << "\nexample: " << line.examples
            << (line.examples.ends_with("\n") ? "" : "\n");
}

std::vector<std::string> option_names(const CommandLine& line) {
  std::vector<std::string> names;
  for (const auto& option : line.options.options()) names.push_back("--" + option->long_name());
  if (!has(line.options, "help")) names.push_back("--help");
  return names;
}

/// Boost's exceptions as our sentences.
[[noreturn]] void refuse(const CommandLine& line, const options::error& error) {
  if (const auto* unknown = dynamic_cast<const options::unknown_option*>(&error)) {
    const std::string name = unknown->get_option_name();
    misuse(line.name,
           concat("there is no option ", shown(name), did_you_mean(name, option_names(line))));
  }
  if (const auto* syntax = dynamic_cast<const options::invalid_command_line_syntax*>(&error)) {
    if (syntax->kind() == options::invalid_command_line_syntax::missing_parameter) {
      misuse(line.name, concat(syntax->get_option_name(), " needs a value"));
    }
  }
  if (const auto* twice = dynamic_cast<const options::multiple_occurrences*>(&error)) {
    misuse(line.name, concat(twice->get_option_name(), " is given more than once"));
  }
  if (const auto* value = dynamic_cast<const options::validation_error*>(&error)) {
    misuse(line.name, shown(value->what()));
  }
  misuse(line.name, shown(error.what()));
}

options::variables_map parse(const CommandLine& line, const std::vector<std::string>& arguments) {
  namespace style = options::command_line_style;
  options::options_description all;
  all.add(line.options);
  options::positional_options_description positional;
  for (const std::string& name : line.positional) {
    if (!has(all, name)) all.add_options()(name.c_str(), options::value<std::string>());
    positional.add(name.c_str(), 1);
  }
  all.add_options()(kTooMany, options::value<std::vector<std::string>>());
  positional.add(kTooMany, -1);
  options::variables_map values;
  options::store(options::command_line_parser(arguments)
                     .options(all)
                     .style(style::unix_style & ~style::allow_guessing)
                     .positional(positional)
                     .run(),
                 values);
  options::notify(values);
  return values;
}

}  // namespace

std::optional<options::variables_map> parse_arguments(const CommandLine& line,
                                                      const std::vector<std::string>& arguments) {
  if (std::find(arguments.begin(), arguments.end(), "--help") != arguments.end()) {
    print_help(line);
    return {};
  }
  options::variables_map values;
  try {
    values = parse(line, arguments);
  } catch (const options::error& error) {
    refuse(line, error);
  }
  if (values.count(kTooMany) > 0) {
    const auto& extra = values[kTooMany].as<std::vector<std::string>>();
    misuse(line.name, concat(in_quotes(extra.front()), " is one argument too many"));
  }
  for (const std::string& name : line.positional) {
    if (values.count(name) == 0) misuse(line.name, name + " is missing");
  }
  return values;
}

void add_work_place(CommandLine& line) {
  line.options.add_options()  //
      ("device", options::value<std::string>()->default_value("cpu")->value_name("KIND"),
       "cpu or gpu")  //
      ("threads", options::value<int>()->default_value(1)->value_name("N"), "CPU threads");
}

WorkPlace work_place(const CommandLine& line, const options::variables_map& values) {
  const std::string kind = values["device"].as<std::string>();
  const int threads = values["threads"].as<int>();
  if (kind != "cpu" && kind != "gpu") {
    misuse(line.name, concat("--device is '", kind, "', expected cpu or gpu"));
  }
  if (threads < 1) misuse(line.name, concat("--threads is ", threads, ", expected at least 1"));
  return {{kind == "gpu" ? DeviceKind::kGpu : DeviceKind::kCpu}, threads};
}

void misuse(const std::string& command, const std::string& what) {
  const std::string name = "tessera" + (command.empty() ? "" : " " + command);
  throw Error(ExitCode::kUsage, concat(name, ": ", what, "; see ", name, " --help"));
}

}  // namespace tessera
