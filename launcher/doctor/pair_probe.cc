#include "launcher/doctor/pair_probe.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "kernels/core/buffer.h"
#include "kernels/core/error.h"
#include "launcher/doctor/words.h"

namespace tessera {

namespace {

constexpr const char* kMark = "pairs:";  // begins every line
constexpr int kRoundTrips = 20;
constexpr int kRepetitions = 3;
constexpr int64_t kRowBytes = 1 << 16;
constexpr int64_t kTrialRows = 4;
constexpr int64_t kMostRows = 256;     // 16 MB
constexpr double kBulkSeconds = 0.02;  // that one repetition should take

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t wall_nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// Talks with one rank after the other. All ranks make the same calls, with nobody to talk to, too.
class Talk {
 public:
  explicit Talk(Communicator& world)
      : world_(world),
        words_(Device{}, 2 * sizeof(int64_t)),
        bulk_(Device{}, 2 * kMostRows * kRowBytes) {}

  /// Whom with, from now on; -1: nobody.
  void turn_to(int peer) { peer_ = peer; }
  bool first() const { return peer_ < 0 || world_.rank() < peer_; }

  /// Sends a number when `sends`, receives one when `receives`, and returns that.
  int64_t exchange(int64_t number, bool sends, bool receives) {
    const TensorView from = words_.view(DType::kI64, {1, 1});
    const TensorView to = words_.view(DType::kI64, {1, 1}, sizeof number);
    from.as<int64_t>()[0] = number;
    exchange_rows(from, to, sends ? 1 : 0, receives ? 1 : 0);
    return to.as<int64_t>()[0];
  }

  /// Seconds for `rows` rows each way.
  double exchange_bulk(int64_t rows) {
    const TensorView all = bulk_.view(DType::kU8, {2 * kMostRows, kRowBytes});
    const double begin = steady_seconds();
    exchange_rows(all.rows(0, rows), all.rows(kMostRows, rows), rows, rows);
    return steady_seconds() - begin;
  }

 private:
  void exchange_rows(TensorView from, TensorView to, int64_t sent, int64_t received) {
    std::vector<RowTransfer> sends;
    std::vector<RowTransfer> receives;
    if (peer_ >= 0 && sent > 0) sends.push_back({peer_, 0, sent});
    if (peer_ >= 0 && received > 0) receives.push_back({peer_, 0, received});
    world_.exchange_rows(stream_, from, sends, to, receives);
  }

  Communicator& world_;
  Stream stream_{Device{}, 1};
  int peer_ = -1;
  Buffer words_;
  Buffer bulk_;
};

// Round trips, of which the shortest counts: it was disturbed least, by others and on one way only.
void measure_latency(Talk& talk, PairFigures& figures) {
  figures.latency = 1e9;
  for (int i = 0; i < kRoundTrips; ++i) {
    const double begin = steady_seconds();
    const int64_t sent = wall_nanoseconds();
    talk.exchange(0, talk.first(), !talk.first());
    const int64_t theirs = talk.exchange(wall_nanoseconds(), !talk.first(), talk.first());
    const double seconds = steady_seconds() - begin;
    if (seconds / 2 >= figures.latency) continue;
    figures.latency = seconds / 2;
    figures.skew = static_cast<double>(theirs - sent) / 1e9 - seconds / 2;
  }
}

void measure_bandwidth(Talk& talk, PairFigures& figures) {
  const double trial = talk.exchange_bulk(kTrialRows);
  const double wanted = static_cast<double>(kTrialRows) * kBulkSeconds / std::max(trial, 1e-9);
  const auto mine =
      static_cast<int64_t>(std::clamp(wanted, double{kTrialRows}, static_cast<double>(kMostRows)));
  // Both must send as much: the less of what each would.
  const int64_t theirs = talk.exchange(mine, true, true);
  const int64_t rows = theirs > 0 ? std::min(mine, theirs) : mine;
  for (int i = 0; i < kRepetitions; ++i) {
    const double rate = static_cast<double>(rows * kRowBytes) / talk.exchange_bulk(rows);
    figures.bandwidth = std::max(figures.bandwidth, rate);
  }
}

}  // namespace

int rounds_of(int ranks) {
  return ranks < 2 ? 0 : ranks + ranks % 2 - 1;
}

int partner_of(int rank, int round, int ranks) {
  const int players = ranks + ranks % 2;  // with an odd number, the last is nobody
  const int circle = players - 1;
  int partner = 0;
  if (rank == players - 1) {
    partner = round * (players / 2) % circle;  // the one who would meet himself
  } else {
    partner = (round - rank + 2 * circle) % circle;
    if (partner == rank) partner = players - 1;
  }
  return partner < ranks ? partner : -1;
}

void probe_pairs(Communicator& world, const std::string& host,
                 const std::function<void(const std::string& line)>& tell) {
  const int rank = world.rank();
  tell(concat(kMark, " rank ", rank, " on ", host));
  Talk talk(world);
  // Everybody meets twice, and the better figures count: what disturbs is rarely there twice.
  const int rounds = rounds_of(world.size());
  for (int turn = 0; turn < 2 * rounds; ++turn) {
    const int peer = partner_of(rank, turn % rounds, world.size());
    talk.turn_to(peer);
    if (peer >= 0) tell(concat(kMark, " begin ", rank, " ", peer));
    talk.exchange(0, true, true);  // both are here, and connected
    PairFigures figures;
    measure_latency(talk, figures);
    measure_bandwidth(talk, figures);
    if (peer < 0 || !talk.first()) continue;
    tell(concat(kMark, " end ", rank, " ", peer, " ", figures.latency, " ", figures.bandwidth, " ",
                figures.skew));
  }
}

namespace {

void take_better(const PairFigures& one, PairFigures& best) {
  best.bandwidth = std::max(best.bandwidth, one.bandwidth);
  if (best.latency != 0 && best.latency <= one.latency) return;
  best.latency = one.latency;
  best.skew = one.skew;
}

}  // namespace

std::vector<PairResult> parse_pairs(const std::string& text) {
  std::map<std::string, std::string> hosts;
  // "0 1", lower rank first: how often one of the two has begun, and what both measured.
  std::map<std::string, int> begun;
  std::map<std::string, PairFigures> measured;
  std::vector<std::string> order;
  // Lines of one rank come in their order, but those of two may be mixed in any way.
  for (const std::string& line : lines_in(text)) {
    const std::vector<std::string> words = words_of(line);
    if (words.size() < 4 || words[0] != kMark) continue;
    const bool in_order = number_in(words[2]) < number_in(words[3]);
    const std::string key = in_order ? words[2] + " " + words[3] : words[3] + " " + words[2];
    if (words[1] == "rank" && words.size() == 5) {
      hosts[words[2]] = words[4];
    } else if (words[1] == "begin" && words.size() == 4) {
      if (++begun[key] == 2) order.push_back(key);
    } else if (words[1] == "end" && words.size() == 7) {
      take_better({.latency = number_in(words[4]).value_or(0),
                   .bandwidth = number_in(words[5]).value_or(0),
                   .skew = number_in(words[6]).value_or(0)},
                  measured[key]);
    }
  }
  std::vector<PairResult> pairs;
  for (const std::string& key : order) {
    const size_t space = key.find(' ');
    const auto name = [&](const std::string& rank) {
      const auto host = hosts.find(rank);
      return host == hosts.end() ? concat("rank ", rank) : host->second;
    };
    PairResult pair{.first = name(key.substr(0, space)), .second = name(key.substr(space + 1))};
    const auto figures = measured.find(key);
    pair.measured = figures != measured.end();
    if (pair.measured) pair.figures = figures->second;
    pairs.push_back(pair);
  }
  return pairs;
}

}  // namespace tessera
