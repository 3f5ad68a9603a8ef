#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace tessera {

/// Measures every pair of ranks: who starts it hears how far it came, even when it hangs.
///
/// There are as many rounds as it takes for every rank to meet every other one, and in a round each
/// rank meets one other at most (the circle method of tournaments), so that no two pairs share a
/// host. A pair begins its round when both have ended the one before.

/// Whom `rank` of `ranks` meets in a round; -1: nobody. There are rounds_of(ranks) rounds.
int partner_of(int rank, int round, int ranks);
int rounds_of(int ranks);

/// What two ranks have measured.
struct PairFigures {
  double latency = 0;    ///< seconds from one to the other: half the shortest round trip
  double bandwidth = 0;  ///< bytes per second, each way, both at once
  double skew = 0;       ///< seconds that the clock of the second is ahead of the first's
};

/// Runs all rounds, twice. Every rank tells one line when it has a name, when it begins to talk
/// with another, and, the lower rank of the two, what was measured.
void probe_pairs(Communicator& world, const std::string& host,
                 const std::function<void(const std::string& line)>& tell);

/// What became of a pair, from all lines that were told.
struct PairResult {
  std::string first;  ///< names of hosts
  std::string second;
  bool measured = false;
  PairFigures figures = {};
};

/// The pairs that were begun by both, in the order in which they were, each with the better of its
/// figures. Lines that are not of
/// probe_pairs are passed over.
std::vector<PairResult> parse_pairs(const std::string& text);

}  // namespace tessera
