#pragma once

#include <string>
#include <vector>

namespace tessera {

/// A host, and how many ranks it takes.
struct HostSlots {
  std::string name;
  int slots = 1;

  friend bool operator==(const HostSlots&, const HostSlots&) = default;
};

/// "a:8,b:8", "a" is "a:1". Throws kUsage naming the part that is wrong.
std::vector<HostSlots> parse_hosts(const std::string& text);

/// How ranks are started by Open MPI.
struct MpirunOptions {
  int ranks = 1;
  std::vector<HostSlots> hosts = {};  ///< empty: this one
  int cores = 1;                      ///< of a host
  bool bind = true;                   ///< each rank to cores of its own, where there are enough
  bool root = false;                  ///< we are root, which mpirun wants to be told
};

/// The words of the command. Ranks fill one host after the other, in the order given: the tensor
/// axis, which is innermost, stays within a host, and expert groups are neighbours.
std::vector<std::string> mpirun_command(const MpirunOptions& options,
                                        const std::vector<std::string>& program);

}  // namespace tessera
