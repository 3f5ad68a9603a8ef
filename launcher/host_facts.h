#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "launcher/cpu_topology.h"

namespace tessera {

/// What a host says about itself before ranks are started there: name of a fact to its value, one
/// line each when they travel.
///   version             version_text()
///   binary              XXH3-128 of the running program
///   mpi                 name and version of the MPI library
///   orted               where the daemon of Open MPI lies, or "none"
///   cores, numa_domains, cores_of_a_domain   cpu_topology()
///   interfaces          "lo=127.0.0.1/8 eth0=10.0.0.1/24 eth1=": those that are up, and address
///   config              XXH3-128 of the resolved configuration
///   config_error        instead of it: why it cannot be read, and then nothing follows
///   data                XXH3-128 of the description of the data set, or "none"
///   marker              "seen" when the marker is in the run directory, or "unseen"
///   run_dir_error       why the run directory cannot be written; only where it cannot
///   ended, remaining    ranks of an earlier life of the launch (launcher/left_over_ranks.h)
using HostFacts = std::map<std::string, std::string>;

/// What is asked.
struct HostQuestion {
  std::string launch;  ///< the name of the launch
  /// The file in the run directory that the launcher has made. Its name is another one each time,
  /// or else a file system could remember that it was not there.
  std::string marker;
  std::vector<std::string> train;  ///< arguments of tessera train
};

/// Tells the facts of this host, one by one as they are found: what hangs is the next one.
void tell_host_facts(const HostQuestion& question,
                     const std::function<void(const std::string&, const std::string&)>& tell);

/// "tessera-host NAME VALUE" and a line feed; line feeds of the value become "; ".
std::string fact_line(const std::string& name, const std::string& value);
/// The facts among lines of output; others, such as greetings of a login shell, are passed over.
HostFacts parse_facts(const std::string& output);

/// The cores that each of these hosts has. Where hosts differ, NUMA domains are left alone.
CpuTopology common_cpus(const std::vector<HostFacts>& hosts);

/// The network, as "10.0.0.0/24", that `interface` of all `hosts` is in, and some interface of
/// `own` host, too; empty when there is none.
std::string common_network(const std::vector<HostFacts>& hosts, const HostFacts& own,
                           const std::string& interface);

/// "eth0 (10.0.0.0/24)", ...: interfaces that have the same name and network on all `hosts`.
std::string common_interfaces(const std::vector<HostFacts>& hosts);

}  // namespace tessera
