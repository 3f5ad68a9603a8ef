#include "runtime/watch/monitor.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace tessera {

namespace {

// A concern often shows on several ranks within moments: look when all have had time to see it.
constexpr double kSettle = 1.2;
// A rank that has failed waits for us.
constexpr double kSettleFailed = 0.3;
constexpr double kLongestAsk = 5;
constexpr double kLongestWriting = 20;

double seconds(int64_t from, int64_t to) {
  return 1e-9 * static_cast<double>(to - from);
}

}  // namespace

Monitor::Monitor(int ranks, const WatchLimits& limits, int64_t now)
    : limits_(limits),
      ranks_(static_cast<size_t>(ranks)),
      stragglers_(ranks),
      since_(now),
      compared_(now) {}

void Monitor::hear(int rank, const HeartbeatBody& heartbeat, int64_t now) {
  if (!sound(heartbeat.state)) return;
  Rank& one = ranks_[static_cast<size_t>(rank)];
  one.heartbeat = heartbeat;
  one.heard = now;
  stragglers_.observe(rank, heartbeat.state);
}

void Monitor::hear(const RankReport& report) {
  if (report.rank < 0 || report.rank >= static_cast<int>(ranks_.size())) return;
  ranks_[static_cast<size_t>(report.rank)].report = report;
}

void Monitor::leave(int rank) {
  ranks_[static_cast<size_t>(rank)].left = true;
}

bool Monitor::lost(const Rank& rank, int64_t now) const {
  return !rank.left && rank.heard > 0 && seconds(rank.heard, now) > limits_.silence;
}

bool Monitor::worried(int64_t now) const {
  return std::any_of(ranks_.begin(), ranks_.end(), [&](const Rank& one) {
    return !one.left && (one.heartbeat.concern != Concern::kNone || lost(one, now));
  });
}

bool Monitor::only_failures(int64_t now) const {
  return std::all_of(ranks_.begin(), ranks_.end(), [&](const Rank& one) {
    const Concern concern = one.left ? Concern::kNone : one.heartbeat.concern;
    return !lost(one, now) && (concern == Concern::kNone || concern == Concern::kFailed);
  });
}

bool Monitor::all_reported(int64_t now) const {
  return std::all_of(ranks_.begin(), ranks_.end(), [&](const Rank& one) {
    return one.left || one.heard == 0 || lost(one, now) || one.report.has_value();
  });
}

bool Monitor::all_left(int64_t now) const {
  return std::all_of(ranks_.begin(), ranks_.end(),
                     [&](const Rank& one) { return one.left || one.heard == 0 || lost(one, now); });
}

RankReport Monitor::report(int rank, int64_t now) const {
  const Rank& one = ranks_[static_cast<size_t>(rank)];
  RankReport report{.now = one.heartbeat.now, .state = one.heartbeat.state};
  if (one.report) report = *one.report;
  report.rank = rank;
  report.concern = one.heartbeat.concern;
  report.silence = one.heard > 0 ? seconds(one.heard, now) : 0;
  report.lost = lost(one, now);
  return report;
}

void Monitor::decide(int64_t now, MonitorNews& news) {
  std::vector<RankReport> known;
  for (int r = 0; r < static_cast<int>(ranks_.size()); ++r) {
    const Rank& one = ranks_[static_cast<size_t>(r)];
    if (!one.left && one.heard > 0) known.push_back(report(r, now));
  }
  const bool failure = only_failures(now);
  const HangReport found = diagnose(known);
  // An error is told by the rank that met it; what we can add is where the ranks parted.
  if (failure && found.kind != HangKind::kMismatch) return;
  if (found.kind == HangKind::kNothing) return;
  const bool of_host = found.kind == HangKind::kLocal || found.kind == HangKind::kLost;
  if (of_host) news.suspects = found.hosts;
  news.lines.push_back(concat("HANG ", found.sentence));
  news.lines.push_back(concat("  ", found.evidence, " -> ", name_of(found.kind)));
  news.lines.emplace_back(failure ? "  action: the error ends the job"
                                  : "  action: all ranks end with 75, to be run again");
}

WatchOrder Monitor::tick(int64_t now, MonitorNews& news) {
  if (state_ == State::kWriting && (all_left(now) || seconds(since_, now) > kLongestWriting)) {
    state_ = State::kEnding;
  }
  if (state_ == State::kEnding) return WatchOrder::kEnd;
  if (state_ == State::kWriting) return WatchOrder::kWriteDown;
  if (state_ == State::kWatching) {
    if (seconds(compared_, now) >= limits_.report) {
      compared_ = now;
      for (std::string& line : stragglers_.report()) news.lines.push_back(std::move(line));
    }
    if (failed_ || !worried(now)) return WatchOrder::kGoOn;
    state_ = State::kAsking;
    since_ = now;
    for (Rank& one : ranks_) one.report.reset();
  }
  const double asked = seconds(since_, now);
  const double settle = only_failures(now) ? kSettleFailed : kSettle;
  if (asked < settle || (asked < kLongestAsk && !all_reported(now))) return WatchOrder::kReport;
  decide(now, news);
  since_ = now;
  failed_ = only_failures(now);
  state_ = failed_ ? State::kWatching : State::kWriting;
  return failed_ ? WatchOrder::kGoOn : WatchOrder::kWriteDown;
}

void Monitor::forgive(int64_t now) {
  for (Rank& one : ranks_) {
    if (one.heard > 0) one.heard = now;
  }
  compared_ = now;
  if (state_ == State::kAsking) since_ = now;
}

}  // namespace tessera
