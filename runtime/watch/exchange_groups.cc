#include "runtime/watch/exchange_groups.h"

#include <algorithm>

#include "kernels/core/dtype.h"
#include "kernels/core/error.h"

namespace tessera {

std::string ExchangeGroup::label() const {
  return name == "world" ? name : concat(name, " of rank ", first);
}

std::map<GroupKey, ExchangeGroup> groups_of(std::span<const RankReport> reports) {
  std::map<GroupKey, ExchangeGroup> groups;
  for (const RankReport& rank : reports) {
    for (size_t i = 0; i < rank.groups.size(); ++i) {
      const FlightGroup& entry = rank.groups[i];
      if (entry.size < 2) continue;
      ExchangeGroup& group = groups[{entry.name.data(), entry.first}];
      group.name = entry.name.data();
      group.first = entry.first;
      group.size = entry.size;
      const bool again = !group.members.empty() && group.members.back().rank == &rank;
      // A name that was given twice: the newest is the one in use.
      if (again) group.members.pop_back();
      group.members.push_back({&rank, entry, static_cast<int>(i)});
    }
  }
  return groups;
}

const CollectiveRecord* record_of(const RankReport& rank, int index, int64_t number) {
  const auto found = std::find_if(
      rank.records.rbegin(), rank.records.rend(),
      [&](const CollectiveRecord& one) { return one.group == index && one.number == number; });
  return found == rank.records.rend() ? nullptr : &*found;
}

const CollectiveRecord* waiting_record(const RankReport& rank) {
  if (rank.state.waits_in < 0) return nullptr;
  const auto found =
      std::find_if(rank.records.rbegin(), rank.records.rend(),
                   [&](const CollectiveRecord& one) { return one.index == rank.state.waits_in; });
  return found == rank.records.rend() ? nullptr : &*found;
}

std::string describe(const CollectiveRecord& record) {
  std::string text = name_of(record.operation);
  const bool tensors = record.operation != Collective::kBarrier &&
                       record.operation != Collective::kSplit &&
                       record.operation != Collective::kAllReduceValues;
  const bool rows =
      record.operation == Collective::kAllToAll || record.operation == Collective::kExchangeRows;
  if (record.operation == Collective::kAllReduceValues)
    text += concat(" f64[", record.elements, "]");
  if (tensors) {
    text += concat(" ", name_of(record.dtype), rows ? "[rows, " : "[", record.elements, "]");
  }
  if (record.file[0] != 0) text += concat(" at ", record.file.data(), ":", record.line);
  return text;
}

std::string describe(const RankReport& rank) {
  return concat("rank ", rank.rank, " (", rank.host().empty() ? "unknown host" : rank.host(), ")");
}

std::string list_ranks(std::span<const int> ranks) {
  constexpr size_t kShown = 8;
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < std::min(ranks.size(), kShown); ++i) {
    const bool last = i + 1 == ranks.size();
    text += concat(i == 0 ? "" : last ? " and " : ", ", ranks[i]);
  }
  if (ranks.size() > kShown) text += concat(" and ", ranks.size() - kShown, " more");
  return text;
}

}  // namespace tessera
