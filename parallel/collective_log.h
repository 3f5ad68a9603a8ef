#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/event.h"
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
/// An exchange on a GPU is complete when the GPU is past it, and not when the host is.
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
  /// Exchange `index` takes place on a GPU: it begins when the stream is past what it was given so
  /// far. Without this it has begun with its start.
  void begin_behind(int64_t index, Stream& stream);
  /// Likewise its end. No effect after the first call for an exchange.
  void end_behind(int64_t index, Stream& stream);
  /// Completes the exchanges whose end the GPU has passed.
  void look_at_streams();
  void add_scratch(int64_t bytes);

 private:
  friend class StreamWait;

  /// An exchange that a GPU has still to do, or does.
  struct OnStream {
    int64_t index;
    std::optional<Event> begin;
    std::optional<Event> end;
  };
  OnStream& on_stream(int64_t index);
  Event take_event(const Stream& stream);

  struct Sums {
    std::string communicator;
    std::array<Traffic, kCollectives> of{};
  };

  FlightRecorder recorder_;
  std::deque<OnStream> on_streams_;  // in the order of their starts
  std::vector<Event> events_;        // unused ones
  bool host_waits_ = false;
  int64_t waits_in_ = -1;  // what the host was last seen to wait for, while it does
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

/// While this lives the host waits for a stream of a GPU: it is blocked in an exchange whenever
/// look_at_streams finds that the GPU is.
class StreamWait {
 public:
  explicit StreamWait(CollectiveLog& log) : log_(log) { log_.host_waits_ = true; }
  ~StreamWait();
  StreamWait(const StreamWait&) = delete;
  StreamWait& operator=(const StreamWait&) = delete;

 private:
  CollectiveLog& log_;
};

}  // namespace tessera
