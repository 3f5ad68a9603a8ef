#pragma once

#include <string>

#include "launcher/captured_command.h"
#include "launcher/doctor/finding.h"
#include "launcher/doctor/machine.h"

namespace tessera {

/// Where a path lies: one line of /proc/self/mounts.
struct Mount {
  std::string point;
  std::string type;     ///< "ext4", "nfs4"
  std::string options;  ///< "rw,relatime,hard"
  std::string source;   ///< "/dev/sda1", "server:/export"
};

/// The mount that `path`, absolute, lies in; the last line wins. Nothing when the text has none.
Mount mount_of(const std::string& mounts, const std::string& path);

/// Judges the directory of a run by what probe_storage told (`said`), in a process of its own that
/// may have hung. `directory` is absolute.
Findings check_storage(const Machine& machine, const std::string& directory,
                       const CapturedCommand& said);

}  // namespace tessera
