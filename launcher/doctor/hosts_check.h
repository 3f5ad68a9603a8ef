#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launcher/doctor/checkup.h"
#include "launcher/mpirun.h"

namespace tessera {

/// What came of asking a host: a checkup, or why there is none.
struct HostCheckup {
  HostSlots host;
  std::optional<Checkup> checkup = {};
  Finding trouble = {};  ///< without a checkup
};

/// The checks of all hosts, at once: check_this_host by ssh, or without on this host. One for each
/// host, in their order, after half a minute at the latest.
std::vector<HostCheckup> check_hosts(const Machine& machine, const Program& program,
                                     const std::vector<HostSlots>& hosts,
                                     const CheckupOptions& options);

/// The words of the command that asks `host`: `program` "doctor host", in the environment that
/// mpirun would give to ranks there (`variables`, "NAME=VALUE").
std::vector<std::string> host_command(const std::string& host, const Program& program,
                                      const std::vector<std::string>& variables,
                                      const CheckupOptions& options);
/// What `said`, the answer of a host, means.
HostCheckup judge_answer(const HostSlots& host, const CapturedCommand& said);

/// What can only be seen by comparing: hosts that do not answer, other programs than `own`, names
/// of one and the same host, more ranks than cores, MTUs and cores that differ.
Findings compare_hosts(const std::vector<HostCheckup>& hosts, const Program& own);

/// The findings of all hosts, each once, with the names of the hosts that have it. What is well may
/// differ in its figures: then those of the first host stand for all.
Findings gathered(const std::vector<HostCheckup>& hosts);

/// All of it, and the pairs of hosts.
Checkup check_all_hosts(const Machine& machine, const std::vector<HostSlots>& hosts,
                        CheckupOptions options);

}  // namespace tessera
