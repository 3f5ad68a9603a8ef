#pragma once

#include <string>
#include <vector>

namespace tessera {

/// Options of every ssh: no questions, no waiting for long; a connection that is dead is given up.
std::vector<std::string> ssh_options();

/// What runs `script` in a POSIX shell of `host`, whatever the login shell there is.
std::vector<std::string> ssh_command(const std::string& host, const std::string& script);

}  // namespace tessera
