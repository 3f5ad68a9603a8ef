#pragma once

#include <string>
#include <vector>

#include "launcher/captured_command.h"
#include "launcher/host_facts.h"
#include "launcher/mpirun.h"

namespace tessera {

enum class HostState {
  kFit,
  kAway,   ///< does not answer, or not yet as it should: asking again later may help
  kUnfit,  ///< answers, but ranks could not run there: something must be mended
};

/// What came of asking a host.
struct HostAnswer {
  HostState state = HostState::kFit;
  /// Unless it is fit: "host n2: " and one sentence: what was found, what was expected, the way
  /// out.
  std::string why = {};
  std::vector<std::string> warnings = {};  ///< each as `why`
  HostFacts facts = {};
};

/// What hosts are compared with.
struct HostExpectation {
  HostFacts own;          ///< of the host of the launcher
  std::string program;    ///< path of the program that ranks are
  std::string directory;  ///< that they start in
  std::string run_directory;
  std::string data;       ///< directory of the data set
  std::string interface;  ///< empty: any
};

/// What to make of `facts` that `host` told. A missing fact is as if there were no such thing.
HostAnswer judge_facts(const HostSlots& host, const HostFacts& facts,
                       const HostExpectation& expected);

/// The same for what came back from ssh: a host that cannot be reached, a program that is not there
/// or another one than here, or its facts.
HostAnswer judge_ssh(const HostSlots& host, const CapturedCommand& said,
                     const HostExpectation& expected);

/// The shell script that tells the facts of a host: `program` in `directory`.
std::string host_script(const HostExpectation& expected, const HostQuestion& question);

/// Asks all hosts at once, by ssh, this one without; one answer each, in their order, after half a
/// minute at the latest.
std::vector<HostAnswer> ask_hosts(const std::vector<HostSlots>& hosts, const HostQuestion& question,
                                  const HostExpectation& expected);

}  // namespace tessera
