#pragma once

#include <string>
#include <vector>

#include "launcher/captured_command.h"
#include "launcher/doctor/finding.h"

namespace tessera {

/// What starts probe_pairs (`program` "doctor pairs"): one rank on each of `hosts`, or `ranks`
/// ranks on this host when there are none. With `interface`, MPI uses that one.
struct WorldQuestion {
  std::string program;
  std::vector<std::string> hosts = {};
  int ranks = 2;
  std::string interface = {};
  bool root = false;
};

std::vector<std::string> world_command(const WorldQuestion& question);
/// Seconds that it may take.
double world_patience(const WorldQuestion& question);

/// Judges what came of it on this host: whether ranks start, find each other, and share memory.
Findings judge_world(const CapturedCommand& said);

/// And on several hosts, for which `network` (bytes per second, 0: unknown) is what their fastest
/// interfaces are made for: names the pair that cannot talk, the slowest pair, and the pair whose
/// clocks differ most.
Findings judge_pairs(const CapturedCommand& said, size_t hosts, double network);

}  // namespace tessera
