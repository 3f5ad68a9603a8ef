#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "parallel/flight_recorder.h"

namespace tessera {

/// Times are nanoseconds of this host's monotonic clock.
struct TraceSpan {
  enum class Kind : uint8_t {
    kStep,
    kPhase,
    kLayer,
    kWait,   ///< blocked in an exchange
    kTrace,  ///< the trace itself is written
  };
  Kind kind = Kind::kPhase;
  Phase phase = Phase::kSetup;
  int32_t layer = -1;
  int64_t step = -1;
  int64_t begin = 0;
  int64_t end = 0;
  int64_t index = -1;  ///< kWait: of the exchange, and
  int64_t number = 0;  ///< that on its communicator
  int32_t group = -1;
  Collective operation = Collective::kBarrier;
};

struct TraceExchange {
  CollectiveRecord record;
  int64_t wait_began = 0;   ///< 0: the rank has not waited for it
  bool overlapped = false;  ///< the rank did other things between start and wait
  bool finished = true;     ///< false: the trace ended before it
};

/// What led to a stage of a save (kSaveStages), since the stage before it.
struct TraceStage {
  const char* name;
  int64_t begin = 0;  ///< = end: a moment
  int64_t end = 0;
  int64_t times = 1;  ///< that the stage was reached in a row
};

/// What a rank did, by time: listens to its FlightRecorder from its making on. Everything is kept
/// in memory that is taken at the start. Spans are whole when they come out, so they nest: steps
/// hold phases, phases hold layers, all of them hold waits. Exchanges within groups of one rank are
/// left out.
class Timeline final : public FlightObserver {
 public:
  static constexpr size_t kSpans = 1 << 17;
  static constexpr size_t kExchanges = 1 << 16;

  /// What has ended, since it was cleared.
  struct Events {
    std::vector<TraceSpan> spans;
    std::vector<TraceExchange> exchanges;
    int64_t dropped = 0;  ///< for which there was no room
  };

  explicit Timeline(FlightRecorder& recorder, size_t spans = kSpans, size_t exchanges = kExchanges);
  ~Timeline() override;
  Timeline(const Timeline&) = delete;
  Timeline& operator=(const Timeline&) = delete;

  void observe(FlightEvent event, int64_t time, int64_t index) override;
  /// A span of the caller's own.
  void add(const TraceSpan& span);
  /// Nothing more will come: ends what is open.
  void close();

  const Events& events() const { return events_; }
  void clear();

 private:
  struct Open {
    int64_t index;
    int64_t moment;
    int64_t wait_began;
    bool overlapped;
  };

  const FlightMap& map() const { return recorder_.map(); }
  Open* find(int64_t index);
  void end_layer(int64_t time);
  void end_phase(int64_t time);
  void end_step(int64_t time);
  void start(int64_t index);
  void finish(const Open& open, bool finished);
  void complete(int64_t index);
  void wait(int64_t time, int64_t index);
  void end_wait(int64_t time);

  FlightRecorder& recorder_;
  Events events_;
  int64_t moment_ = 0;  // counts what the rank does, but for waits that follow their start
  std::optional<TraceSpan> step_;
  std::optional<TraceSpan> phase_;
  std::optional<TraceSpan> layer_;
  std::optional<TraceSpan> wait_;
  std::vector<Open> open_;
};

/// The stages of this rank's saves, told by whatever thread reaches them.
class StageTrack {
 public:
  void start();
  void stop();
  /// `stage` lives as long as the program.
  void reach(const char* stage);
  /// Those since the last call.
  std::vector<TraceStage> take();

 private:
  std::mutex mutex_;
  bool on_ = false;
  int64_t last_ = 0;
  std::vector<TraceStage> stages_;
};

}  // namespace tessera
