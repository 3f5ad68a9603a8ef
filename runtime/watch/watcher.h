#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "parallel/flight_recorder.h"
#include "runtime/watch/step_times.h"
#include "runtime/watch/watch_link.h"
#include "runtime/watch/watch_server.h"

namespace tessera {

// What a rank and its watcher say to each other over a pair of sockets: plain structs, as one is
// the fork of the other.

enum class RankMessage : int32_t {
  kListen,  ///< rank 0: answer with WatchPort
  kBegin,   ///< a WatchBegin: answer with one byte
  kFail,    ///< as kBegin, when the watchers have looked
  kEnd,
};

struct WatchPort {
  int32_t port;
  std::array<char, 256> trouble;  ///< why there is none; ends with 0
};

/// All that a watcher must know of a run.
struct WatchBegin {
  RankMessage kind = RankMessage::kBegin;
  int32_t port = 0;
  int32_t stacks = -1;  ///< the rank's descriptor of its stacks file
  int32_t addresses = 0;
  HelloBody hello{};
  WatchLimits limits;
  std::array<std::array<char, 48>, 16> address{};  ///< of rank 0's host
  std::array<char, 2048> run_directory{};
};
static_assert(std::is_trivially_copyable_v<WatchBegin>);

/// The process beside a rank. Once a second it tells the watcher of rank 0 how its rank is: at
/// work, too long at one thing, stopped, or gone. When something is wrong, rank 0's watcher asks
/// for all flight records, says in one sentence which rank holds up the job (hang_report.h), and
/// orders all watchers to write their records and stacks down and to end their ranks with exit
/// code 75. A watcher that hears nothing from rank 0's for limits.lease ends its rank too: it may
/// be the side of a cut network that others have given up.
///
/// It survives whatever the rank dies of but a kill of both, ends with the rank, and is quiet when
/// the rank ends in order.
class Watcher {
 public:
  /// `channel` leads to the rank, whose process is `rank`.
  Watcher(Descriptor channel, pid_t rank);
  /// To the end of the rank.
  void run();

 private:
  enum class Talk : uint8_t { kGoOn, kEnd, kClosed };

  Talk listen_to_rank();
  void begin(const WatchBegin& begin);
  void answer_port();
  void answer();
  Concern concern(int64_t now);
  void look(int64_t now);
  WatchOrder exchange(const HeartbeatBody& own, int64_t now);
  bool obey(WatchOrder order);
  void check_lease(int64_t now);
  void check_setup(int64_t now);
  void watch_over_gone_rank();
  void note(MonitorNews news);
  void write_down();
  void end_rank();
  void wait_for_news(double seconds) const;
  RankReport report(int64_t now) const;
  bool begun() const { return file_ != nullptr; }
  int64_t now_forgiving();

  Descriptor channel_;
  pid_t rank_process_;
  int64_t started_;
  int64_t last_tick_;
  WatchBegin begin_{};
  std::string flight_;
  std::unique_ptr<FlightFile> file_;
  std::optional<StepTimes> times_;
  std::optional<WatchServer> server_;  ///< rank 0
  std::optional<WatchLink> link_;      ///< the others
  int64_t stopped_since_ = 0;
  int64_t forgiven_ = 0;  ///< sections that began earlier count from here
  bool gone_ = false;
  bool failed_ = false;
  int64_t failed_since_ = 0;
  bool written_ = false;
  bool warned_of_link_ = false;
};

}  // namespace tessera
