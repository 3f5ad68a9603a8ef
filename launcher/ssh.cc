#include "launcher/ssh.h"

#include "kernels/core/error.h"
#include "launcher/shell.h"

namespace tessera {

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
