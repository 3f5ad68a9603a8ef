#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "kernels/core/error.h"
#include "launcher/doctor/finding.h"
#include "launcher/doctor/machine.h"
#include "launcher/doctor/words.h"

namespace tessera::support {

/// A machine that says what a test has written down. What is not there cannot be read, is not set,
/// or is not installed.
class TextMachine final : public Machine {
 public:
  std::map<std::string, std::string> files;
  std::map<std::string, std::string> environment;
  /// By the words of the command with blanks between.
  std::map<std::string, CapturedCommand> commands;
  std::vector<InterfaceAddress> interface_addresses;
  std::map<std::string, Space> spaces;

  /// A command that ends well.
  void says(const std::string& command, const std::string& output) {
    commands[command] = {.output = output, .errors = "", .trouble = ""};
  }
  /// One that does not.
  void fails(const std::string& command, int code, const std::string& errors) {
    commands[command] = {.exit_code = code,
                         .output = "",
                         .errors = errors,
                         .trouble = concat("it ended with ", code, ": ", errors)};
  }

  std::optional<std::string> file(const std::string& path) const override {
    const auto found = files.find(path);
    if (found == files.end()) return {};
    return found->second;
  }
  /// From the paths of files.
  std::vector<std::string> names(const std::string& folder) const override {
    std::vector<std::string> found;
    for (const auto& [path, text] : files) {
      if (!path.starts_with(folder + "/")) continue;
      const std::string rest = path.substr(folder.size() + 1);
      found.push_back(rest.substr(0, rest.find('/')));
    }
    found.erase(std::unique(found.begin(), found.end()), found.end());
    return found;
  }
  std::string variable(const std::string& name) const override {
    const auto found = environment.find(name);
    return found == environment.end() ? "" : found->second;
  }
  std::vector<std::string> variables(const std::string& prefix) const override {
    std::vector<std::string> found;
    for (const auto& [name, value] : environment) {
      if (name.starts_with(prefix)) found.push_back(concat(name, "=", value));
    }
    return found;
  }
  CapturedCommand ask(const std::vector<std::string>& command, double) const override {
    std::string words;
    for (const std::string& word : command) words += (words.empty() ? "" : " ") + word;
    const auto found = commands.find(words);
    if (found != commands.end()) return found->second;
    return {.exit_code = 127,
            .output = "",
            .errors = "",
            .trouble = concat("cannot start ", command.front(), ": No such file or directory")};
  }
  std::vector<InterfaceAddress> addresses() const override { return interface_addresses; }
  std::optional<Space> space(const std::string& path) const override {
    const auto found = spaces.find(path);
    if (found == spaces.end()) return {};
    return found->second;
  }
};

/// The findings about `subject`, one line each: "warn found -> advice".
inline std::string about(const Findings& findings, const std::string& subject) {
  std::string text;
  for (const Finding& one : findings) {
    if (one.subject != subject) continue;
    text += concat(text.empty() ? "" : "\n", name_of(one.verdict), " ", one.found,
                   one.advice.empty() ? "" : " -> ", one.advice);
  }
  return text;
}

}  // namespace tessera::support
