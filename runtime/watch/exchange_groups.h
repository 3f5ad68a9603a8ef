#pragma once

#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "runtime/watch/rank_report.h"

namespace tessera {

/// A group of ranks, pieced together from what its members say.
struct ExchangeGroup {
  /// One member, and what it has done on it.
  struct Member {
    const RankReport* rank;
    FlightGroup entry;
    int index;  ///< of the entry, in records
  };

  std::string name;  ///< of the communicator
  int first = 0;     ///< its lowest rank
  std::vector<Member> members;
  int size = 1;  ///< members that there are, heard of or not

  /// "tensor of rank 4", "world".
  std::string label() const;
};

using GroupKey = std::pair<std::string, int>;

/// All groups of more than one rank that the reports name.
std::map<GroupKey, ExchangeGroup> groups_of(std::span<const RankReport> reports);

/// The record of exchange `number` on entry `index`; nullptr when it is not kept.
const CollectiveRecord* record_of(const RankReport& rank, int index, int64_t number);
/// The record that the rank is blocked in; nullptr when it is blocked in none.
const CollectiveRecord* waiting_record(const RankReport& rank);

/// "all_reduce bf16[1024] at model/moe.cc:212".
std::string describe(const CollectiveRecord& record);
/// "rank 3 (n2)".
std::string describe(const RankReport& rank);
/// "ranks 3, 4 and 7"; long lists are cut.
std::string list_ranks(std::span<const int> ranks);

}  // namespace tessera
