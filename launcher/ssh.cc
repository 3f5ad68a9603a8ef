#include "launcher/ssh.h"

#include "kernels/core/error.h"

namespace tessera {

std::string shell_quoted(const std::string& word) {
  const bool plain = !word.empty() && word.find_first_not_of(
                                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                          "0123456789.,:=+-_/@%") == std::string::npos;
  if (plain) return word;
  std::string quoted = "'";
  for (const char c : word) {
    if (c == '\'') {
      quoted += "'\\''";
    } else {
      quoted += c;
    }
  }
  return quoted + "'";
}

std::string shell_line(const std::vector<std::string>& words) {
  std::string line;
  for (const std::string& word : words) line += concat(line.empty() ? "" : " ", shell_quoted(word));
  return line;
}

std::vector<std::string> ssh_options() {
  return {"-o", "BatchMode=yes",         "-o", "ConnectTimeout=5",
          "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"};
}

std::vector<std::string> ssh_command(const std::string& host, const std::string& script) {
  std::vector<std::string> words{"ssh"};
  const std::vector<std::string> options = ssh_options();
  words.insert(words.end(), options.begin(), options.end());
  words.insert(words.end(), {"--", host, concat("exec sh -c ", shell_quoted(script))});
  return words;
}

}  // namespace tessera
