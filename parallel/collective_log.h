#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/flight_recorder.h"

namespace tessera {

struct Traffic {
  int64_t calls = 0;
  int64_t sent = 0;      ///< bytes from this rank to others
  int64_t received = 0;  ///< bytes from others to this rank

  friend bool operator==(const Traffic&, const Traffic&) = default;
};

/// What one rank has exchanged, and where it is: a FlightRecorder of the last exchanges one by one,
/// and all of them in sums. One log for all communicators that were split from the same world. On
/// kPlan the bytes are those that the exchange would move. Another thread may read sums while the
/// rank works, or hangs; the map has its own rules.
class CollectiveLog {
 public:
  /// Written into all records from now on; -1 for outside of any step or layer.
  void set_place(int64_t step, int layer);
  void set_layer(int layer);
  void set_phase(Phase phase) { recorder_.set_phase(phase); }

  FlightRecorder& recorder() { return recorder_; }
  const FlightMap& map() const { return recorder_.map(); }

  /// How many exchanges were ever started.
  int64_t size() const { return map().state.records; }
  /// Exchange `index`, one of the last FlightMap::kRecords; they are in order of their start.
  CollectiveRecord record(int64_t index) const;
  /// The name of its communicator, cut to 35 characters.
  std::string name_of_group(const CollectiveRecord& record) const;

  /// The names of all communicators, in order of their making, each once.
  std::vector<std::string> communicators() const;
  /// The sums over all communicators of this name; zeros when there is none.
  Traffic traffic(std::string_view communicator, Collective operation) const;
  /// As above, over all operations.
  Traffic traffic(std::string_view communicator) const;

  /// Bytes of scratch memory that all these communicators have for their exchanges. It grows with
  /// the largest ones, and stays. On a plan: what MPI ranks will have.
  int64_t scratch() const;

  /// Asked before each exchange, for fault injection: false leaves it out on this rank.
  void ask_before(std::function<bool()> proceed) { proceed_ = std::move(proceed); }

  /// For Communicator.
  struct Group {
    int sums = -1;   ///< shared by all of its name
    int entry = -1;  ///< its own in the map
  };
  /// `first` is the rank in the world of the first of `size` members, `rank` this rank's place.
  Group add(const std::string& communicator, int first, int rank, int size);
  /// False: this exchange is to be left out.
  bool proceed() const { return !proceed_ || proceed_(); }
  /// The index of the record, in which it fills in the communicator and the place in the run.
  int64_t start(const Group& group, CollectiveRecord record);
  void complete(int64_t index) { recorder_.complete(index); }
  void add_scratch(int64_t bytes);

 private:
  struct Sums {
    std::string communicator;
    std::array<Traffic, kCollectives> of{};
  };

  FlightRecorder recorder_;
  std::function<bool()> proceed_;
  mutable std::mutex mutex_;
  std::vector<Sums> sums_;
  int64_t scratch_ = 0;
};

/// A rank is blocked in an exchange while this lives.
class ExchangeWait {
 public:
  ExchangeWait(CollectiveLog& log, int64_t record) : log_(log) {
    log.recorder().begin_wait(record);
  }
  ~ExchangeWait() { log_.recorder().end_wait(); }
  ExchangeWait(const ExchangeWait&) = delete;
  ExchangeWait& operator=(const ExchangeWait&) = delete;

 private:
  CollectiveLog& log_;
};

}  // namespace tessera
