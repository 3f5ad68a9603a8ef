#include "runtime/watch/hang_report.h"

#include <algorithm>
#include <iomanip>
#include <map>
#include <set>
#include <sstream>

#include "kernels/core/error.h"
#include "runtime/watch/exchange_groups.h"
#include "runtime/watch/process_state.h"

namespace tessera {

namespace {

using Groups = std::map<GroupKey, ExchangeGroup>;

std::string seconds(double value) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(1) << std::max(0.0, value) << " s";
  return out.str();
}

/// "step 18 phase backward layer 3", "phase setup".
std::string place(const FlightState& state) {
  std::string text = state.step >= 0 && state.phase != Phase::kSetup
                         ? concat("step ", state.step, " phase ", name_of(state.phase))
                         : concat("phase ", name_of(state.phase));
  if (state.layer >= 0 && in_step(state.phase)) text += concat(" layer ", state.layer);
  return text;
}

std::string condition(const RankReport& rank) {
  std::string text = concat("process state ", to_text(static_cast<char>(rank.state.process_state)));
  const std::string waits_at = rank.state.waits_at.data();
  if (!waits_at.empty() && rank.state.process_state == 'D') text += " in " + waits_at;
  return concat(text, ", heartbeat ", seconds(rank.silence), " ago");
}

/// Since when the rank does what it does.
double stuck_for(const RankReport& rank) {
  return rank.since(rank.state.section_began);
}

std::vector<int> ranks_of(const std::vector<const RankReport*>& some) {
  std::vector<int> ranks;
  for (const RankReport* one : some) ranks.push_back(one->rank);
  return ranks;
}

HangReport about(HangKind kind, const std::vector<const RankReport*>& culprits) {
  HangReport report{.kind = kind, .culprits = ranks_of(culprits)};
  std::set<std::string> hosts;
  for (const RankReport* one : culprits) hosts.insert(one->host());
  report.hosts.assign(hosts.begin(), hosts.end());
  return report;
}

/// Everything about one job at one moment.
class Job {
 public:
  explicit Job(std::span<const RankReport> reports)
      : reports_(reports), groups_(groups_of(reports)) {}

  HangReport gone() const;
  HangReport lost() const;
  HangReport stopped() const;
  HangReport mismatch() const;
  HangReport blocked() const;

 private:
  /// An exchange that a rank is blocked in.
  struct Wait {
    const ExchangeGroup* group = nullptr;
    const CollectiveRecord* record = nullptr;
  };

  Wait wait_of(const RankReport& rank) const;
  std::vector<const RankReport*> blockers(const Wait& wait) const;
  std::vector<const RankReport*> waiters(const Wait& wait) const;
  Wait wait_for(const RankReport& culprit) const;
  HangReport local(const RankReport& culprit, const Wait& wait) const;
  std::string others_behind(const Wait& wait) const;
  std::string who_waits(const Wait& wait, const RankReport& culprit) const;

  std::span<const RankReport> reports_;
  Groups groups_;
};

bool moves(const RankReport& rank) {
  const auto state = static_cast<char>(rank.state.process_state);
  return !rank.lost && rank.concern != Concern::kGone && state != 'T' && state != 'X';
}

HangReport Job::gone() const {
  std::vector<const RankReport*> found;
  for (const RankReport& one : reports_) {
    if (one.concern == Concern::kGone && !one.lost) found.push_back(&one);
  }
  if (found.empty()) return {};
  HangReport report = about(HangKind::kGone, found);
  const RankReport& first = *found.front();
  report.sentence =
      concat(place(first.state), ": ", describe(first), " is gone: it crashed or was killed; ");
  report.sentence += found.size() == 1
                         ? "the others cannot go on"
                         : concat("so are others, in all ", list_ranks(ranks_of(found)));
  const CollectiveRecord* last = waiting_record(first);
  report.evidence =
      concat("its last exchange: ", last == nullptr ? "none under way" : describe(*last));
  return report;
}

HangReport Job::lost() const {
  std::vector<const RankReport*> found;
  for (const RankReport& one : reports_) {
    if (one.lost) found.push_back(&one);
  }
  if (found.empty()) return {};
  HangReport report = about(HangKind::kLost, found);
  double longest = 0;
  for (const RankReport* one : found) longest = std::max(longest, one->silence);
  std::string hosts;
  for (const std::string& host : report.hosts) hosts += (hosts.empty() ? "" : ", ") + host;
  report.sentence = concat(place(found.front()->state), ": no word from ", hosts, " (",
                           list_ranks(report.culprits), ") for ", seconds(longest),
                           ": the host is down, or cut off from rank 0");
  const Wait wait = wait_for(*found.front());
  report.evidence =
      wait.group == nullptr ? "no other rank waits for it yet" : who_waits(wait, *found.front());
  return report;
}

HangReport Job::stopped() const {
  for (const RankReport& one : reports_) {
    if (one.concern == Concern::kStopped) return local(one, wait_for(one));
  }
  return {};
}

/// What members must agree on in an exchange of one number.
bool same_call(const CollectiveRecord& a, const CollectiveRecord& b) {
  if (a.operation != b.operation || a.dtype != b.dtype || a.elements != b.elements) return false;
  if (!in_step(a.phase) || !in_step(b.phase)) return true;
  return a.step == b.step && a.phase == b.phase && a.layer == b.layer && a.line == b.line &&
         a.file == b.file;
}

/// Members that made the same call.
struct Side {
  const CollectiveRecord* call;
  std::vector<const RankReport*> ranks;
  size_t votes = 0;  ///< of ranks for this call
};

/// How many ranks of other groups of that name have made the call: all groups do the same, and of a
/// pair one is right.
size_t votes_elsewhere(const Groups& groups, const ExchangeGroup& group,
                       const CollectiveRecord& call) {
  size_t votes = 0;
  for (const auto& [key, other] : groups) {
    if (&other == &group || other.name != group.name) continue;
    for (const ExchangeGroup::Member& member : other.members) {
      const CollectiveRecord* record = record_of(*member.rank, member.index, call.number);
      if (record == nullptr) continue;
      const bool same = record->operation == call.operation && record->line == call.line &&
                        record->file == call.file && record->layer == call.layer;
      votes += same ? 1 : 0;
    }
  }
  return votes;
}

/// The first exchange of the group that all have kept and its members call differently; empty when
/// there is none.
std::vector<Side> first_difference(const ExchangeGroup& group) {
  std::map<int64_t, std::vector<Side>> exchanges;
  for (const ExchangeGroup::Member& member : group.members) {
    for (const CollectiveRecord& record : member.rank->records) {
      if (record.group != member.index) continue;
      std::vector<Side>& sides = exchanges[record.number];
      const auto same = std::find_if(sides.begin(), sides.end(), [&](const Side& side) {
        return same_call(*side.call, record);
      });
      if (same == sides.end()) {
        sides.push_back({&record, {member.rank}});
      } else {
        same->ranks.push_back(member.rank);
      }
    }
  }
  for (auto& [number, sides] : exchanges) {
    if (sides.size() > 1) return sides;
  }
  return {};
}

HangReport Job::mismatch() const {
  const ExchangeGroup* where = nullptr;
  std::vector<Side> sides;
  for (const auto& [key, group] : groups_) {
    std::vector<Side> found = first_difference(group);
    if (found.empty()) continue;
    // The one that was called first is the cause of the others.
    if (where != nullptr && found[0].call->step >= sides[0].call->step &&
        found[0].call->index >= sides[0].call->index) {
      continue;
    }
    where = &group;
    sides = std::move(found);
  }
  if (where == nullptr) return {};
  for (Side& side : sides) {
    side.votes = side.ranks.size() + votes_elsewhere(groups_, *where, *side.call);
  }
  std::stable_sort(sides.begin(), sides.end(),
                   [](const Side& a, const Side& b) { return a.votes < b.votes; });
  const Side& few = sides.front();
  HangReport report = about(HangKind::kMismatch, few.ranks);
  report.sentence = concat(place(few.ranks.front()->state), ": the ranks of ", where->label(),
                           " call different exchanges as #", few.call->number, ": ");
  for (const Side& side : sides) {
    report.sentence +=
        concat(&side == &sides.front() ? "" : "; ", list_ranks(ranks_of(side.ranks)),
               side.ranks.size() == 1 ? concat(" (", side.ranks[0]->host(), ")") : "", " ",
               describe(*side.call), " (step ", side.call->step, " ", name_of(side.call->phase),
               side.call->layer < 0 ? "" : concat(" layer ", side.call->layer), ")");
  }
  const bool tie = few.votes == sides[1].votes;
  report.evidence = concat(
      tie ? "one of them" : list_ranks(report.culprits), " left out an exchange, or made another",
      tie ? "" : concat(", as ", sides.back().votes, " ranks made the other call"),
      "; exchanges before #", few.call->number, " agree as far as they are kept");
  if (tie) {
    for (size_t i = 1; i < sides.size(); ++i) {
      for (const RankReport* one : sides[i].ranks) report.culprits.push_back(one->rank);
    }
  }
  return report;
}

Job::Wait Job::wait_of(const RankReport& rank) const {
  const CollectiveRecord* record = waiting_record(rank);
  if (record == nullptr || record->group < 0 ||
      record->group >= static_cast<int>(rank.groups.size())) {
    return {};
  }
  const FlightGroup& entry = rank.groups[static_cast<size_t>(record->group)];
  const auto group = groups_.find({entry.name.data(), entry.first});
  return group == groups_.end() ? Wait{} : Wait{&group->second, record};
}

/// The members that keep an exchange from ending: those that have not entered it, or are in it and
/// do not move, or have started it and left MPI, without which long messages rest.
std::vector<const RankReport*> Job::blockers(const Wait& wait) const {
  std::vector<const RankReport*> found;
  for (const ExchangeGroup::Member& member : wait.group->members) {
    const RankReport& rank = *member.rank;
    const bool entered = member.entry.started > wait.record->number;
    if (!entered || !moves(rank) ||
        (rank.state.waits_in < 0 && member.entry.completed < wait.record->number)) {
      found.push_back(&rank);
    }
  }
  return found;
}

std::vector<const RankReport*> Job::waiters(const Wait& wait) const {
  std::vector<const RankReport*> found;
  for (const ExchangeGroup::Member& member : wait.group->members) {
    const Wait other = wait_of(*member.rank);
    if (other.record != nullptr && other.group == wait.group &&
        other.record->number == wait.record->number) {
      found.push_back(member.rank);
    }
  }
  return found;
}

/// The exchange in which most ranks wait for this one.
Job::Wait Job::wait_for(const RankReport& culprit) const {
  Wait best;
  size_t most = 0;
  for (const RankReport& rank : reports_) {
    const Wait wait = wait_of(rank);
    if (wait.record == nullptr || rank.rank == culprit.rank) continue;
    const auto keep = blockers(wait);
    if (std::find(keep.begin(), keep.end(), &culprit) == keep.end()) continue;
    const size_t waiting = waiters(wait).size();
    if (waiting <= most) continue;
    most = waiting;
    best = wait;
  }
  return best;
}

std::string Job::who_waits(const Wait& wait, const RankReport& culprit) const {
  const auto member = std::find_if(wait.group->members.begin(), wait.group->members.end(),
                                   [&](const auto& one) { return one.rank == &culprit; });
  std::vector<const RankReport*> waiting = waiters(wait);
  std::erase(waiting, &culprit);
  std::string text = concat(waiting.size(), "/", wait.group->size, " ranks of ",
                            wait.group->label(), " wait in #", wait.record->number);
  if (member != wait.group->members.end() && member->entry.completed >= 0) {
    text += concat("; rank ", culprit.rank, " last completed #", member->entry.completed);
    const CollectiveRecord* last = record_of(culprit, member->index, member->entry.completed);
    if (last != nullptr) text += concat(" ", seconds(culprit.since(last->completed)), " ago");
  }
  return text;
}

std::string Job::others_behind(const Wait& wait) const {
  std::set<const ExchangeGroup*> behind;
  for (const RankReport& rank : reports_) {
    const Wait other = wait_of(rank);
    if (other.group != nullptr && other.group != wait.group) behind.insert(other.group);
  }
  if (behind.empty()) return "";
  return concat(
      "; ", behind.size(),
      behind.size() == 1 ? " other group waits behind it" : " other groups wait behind it");
}

HangReport Job::local(const RankReport& culprit, const Wait& wait) const {
  HangReport report = about(HangKind::kLocal, {&culprit});
  if (wait.group == nullptr) {
    report.sentence = concat(place(culprit.state), " after ", seconds(stuck_for(culprit)), ": ",
                             describe(culprit), " does not move; no other rank waits for it yet");
    const CollectiveRecord* own = waiting_record(culprit);
    report.evidence =
        concat(own == nullptr ? "" : concat("it is in ", describe(*own), "; "), condition(culprit));
    return report;
  }
  const auto waiting = waiters(wait);
  const RankReport& victim = *waiting.front();
  const auto member = std::find_if(wait.group->members.begin(), wait.group->members.end(),
                                   [&](const auto& one) { return one.rank == &culprit; });
  const bool entered = member->entry.started > wait.record->number;
  report.sentence =
      concat(place(victim.state), " after ", seconds(stuck_for(victim)), ": ", describe(culprit),
             entered ? " entered, and does not complete, " : " did not enter ", wait.group->label(),
             " #", wait.record->number, " ", describe(*wait.record));
  report.evidence = concat(who_waits(wait, culprit), "; it is in ", place(culprit.state), " since ",
                           seconds(culprit.since(culprit.state.phase_began)), ", ",
                           condition(culprit), others_behind(wait));
  return report;
}

HangReport Job::blocked() const {
  std::map<int, int> votes;
  bool circle = false;
  bool complete = false;  // an exchange that all have entered
  const RankReport* example = nullptr;
  for (const RankReport& start : reports_) {
    const RankReport* at = &start;
    std::set<const RankReport*> seen;
    while (true) {
      const Wait wait = wait_of(*at);
      if (wait.record == nullptr || !moves(*at)) {
        ++votes[at->rank];
        break;
      }
      const auto next = blockers(wait);
      if (next.empty()) {
        if (!complete) example = at;
        complete = true;
        break;
      }
      if (!seen.insert(at).second) {
        if (!circle && !complete) example = at;
        circle = true;
        break;
      }
      at = next.front();
    }
  }
  if (!votes.empty()) {
    const auto most =
        std::max_element(votes.begin(), votes.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    for (const RankReport& one : reports_) {
      if (one.rank == most->first) return local(one, wait_for(one));
    }
  }
  if (example == nullptr) return {};
  const Wait wait = wait_of(*example);
  HangReport report = about(complete ? HangKind::kNetwork : HangKind::kDeadlock, waiters(wait));
  report.sentence =
      concat(place(example->state), " after ", seconds(stuck_for(*example)), ": ",
             complete ? "all ranks of " : "ranks of ", wait.group->label(), " are in #",
             wait.record->number, " ", describe(*wait.record),
             complete ? ", and it does not end" : ", and wait for ranks that wait for them");
  report.evidence =
      concat(list_ranks(report.culprits), " wait in it",
             complete ? "; look at the network between their hosts" : "", others_behind(wait));
  return report;
}

}  // namespace

const char* name_of(HangKind kind) {
  switch (kind) {
    case HangKind::kNothing:
      return "NOTHING";
    case HangKind::kGone:
      return "PROCESS GONE";
    case HangKind::kLost:
      return "HOST LOST";
    case HangKind::kMismatch:
      return "MISMATCH";
    case HangKind::kLocal:
      return "LOCAL HANG";
    case HangKind::kNetwork:
      return "NETWORK";
    case HangKind::kDeadlock:
      break;
  }
  return "DEADLOCK";
}

HangReport diagnose(std::span<const RankReport> reports) {
  const bool ended = std::all_of(reports.begin(), reports.end(), [](const RankReport& one) {
    return one.concern == Concern::kGone;
  });
  if (ended) return {};
  const Job job(reports);
  for (const auto look : {&Job::mismatch, &Job::gone, &Job::lost, &Job::stopped, &Job::blocked}) {
    HangReport report = (job.*look)();
    if (report.kind != HangKind::kNothing) return report;
  }
  return {};
}

}  // namespace tessera
