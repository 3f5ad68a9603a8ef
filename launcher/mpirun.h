#pragma once

#include <string>
#include <vector>

#include "launcher/cpu_topology.h"

namespace tessera {

/// A host, and how many ranks it takes.
struct HostSlots {
  std::string name;
  int slots = 1;

  friend bool operator==(const HostSlots&, const HostSlots&) = default;
};

/// "a:8,b:8", "a" is "a:1". Throws kUsage naming the part that is wrong.
std::vector<HostSlots> parse_hosts(const std::string& text);
/// The same, the other way round.
std::string to_text(const std::vector<HostSlots>& hosts);

/// How ranks are started by Open MPI.
struct MpirunOptions {
  int ranks = 1;
  std::vector<HostSlots> hosts = {};  ///< empty: this one
  CpuTopology cpus = {};              ///< of the host that has least
  bool bind = true;                   ///< each rank to cores of its own, where there are enough
  bool root = false;                  ///< we are root, which mpirun wants to be told
  std::string interface = {};         ///< of every host, for messages; empty: Open MPI chooses
  std::string network = {};           ///< "10.0.0.0/24", for its daemons; empty: Open MPI chooses
  /// NAME or NAME=VALUE: variables that ranks on other hosts get too.
  std::vector<std::string> environment = {};
};

/// The words of the command. Ranks fill one host after the other, in the order given: the tensor
/// axis, which is innermost, stays within a host, and expert groups are neighbours. Where there are
/// enough cores, each rank has its own, all in one NUMA domain unless it has several of them to
/// itself. A host that is cut off is noticed by mpirun, and by its daemon there, within 15 s.
std::vector<std::string> mpirun_command(const MpirunOptions& options,
                                        const std::vector<std::string>& program);

}  // namespace tessera
