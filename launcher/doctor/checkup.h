#pragma once

#include <map>
#include <optional>
#include <string>

#include "launcher/doctor/finding.h"
#include "launcher/doctor/machine.h"
#include "launcher/doctor/program.h"

namespace tessera {

struct CheckupOptions {
  std::string run_directory = ".";  ///< absolute or from the working directory
  std::string marker = {};          ///< a file that should be in it; empty: none
  std::string interface = {};       ///< the network interface that is meant; empty: any
  bool world = true;                ///< start two ranks
  bool root = false;                ///< we are root, which mpirun wants to be told
};

/// What was found on one host, or on several.
struct Checkup {
  std::string host;
  Program program;
  /// Numbers that hosts are compared by: "cores", "mtu eth0", "speed eth0" (Mbit/s).
  std::map<std::string, double> numbers = {};
  Findings findings = {};
};

/// All checks of this host. Takes some seconds, whatever hangs: what may is asked of other
/// processes
/// (`program` again among them), and they are ended.
Checkup check_this_host(const Machine& machine, const CheckupOptions& options);

/// One line of JSON: {"host": ..., "program": {...}, "numbers": {...}, "findings": [{"verdict":
/// "warn", "subject": ..., "found": ..., "advice": ..., "hosts": ...}, ...], "verdict": "warn"}.
std::string to_json(const Checkup& checkup);
/// The way back, from a text that may have other lines too, as a login shell greets. Nothing when
/// it has none.
std::optional<Checkup> checkup_from(const std::string& text);

}  // namespace tessera
