#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "parallel/flight_map.h"

namespace tessera {

/// Where a program calls an exchange. std::source_location, which clang 14 does not have.
struct CallSite {
  const char* file = "";
  int line = 0;

  /// As a default argument: the place of the call that it is left out of.
  static constexpr CallSite current(const char* file = __builtin_FILE(),
                                    int line = __builtin_LINE()) {
    return {file, line};
  }
};

/// Nanoseconds of the host's monotonic clock.
int64_t monotonic_nanoseconds();

/// What a FlightRecorder is told.
enum class FlightEvent : uint8_t {
  kStep,
  kLayer,
  kPhase,
  kStepEnd,  ///< a kPhase follows
  kStart,    ///< and the three below: with the index of the exchange
  kComplete,
  kWait,
  kWaitEnd,
};

/// Sees what a FlightRecorder is told, on the rank's thread.
class FlightObserver {
 public:
  virtual ~FlightObserver() = default;
  /// The map has it already. `index` is -1 where no exchange is concerned.
  virtual void observe(FlightEvent event, int64_t time, int64_t index) = 0;
};

/// The writer of a FlightMap: one rank's, in memory until it is kept in a file. One thread writes;
/// readers of other processes see whole records or none.
class FlightRecorder {
 public:
  FlightRecorder();
  ~FlightRecorder();
  FlightRecorder(const FlightRecorder&) = delete;
  FlightRecorder& operator=(const FlightRecorder&) = delete;

  /// From now on everything is kept in this file, with what there is so far: it is there when the
  /// process is killed, too. Throws kUsage when the file cannot be made.
  void keep_in(const std::filesystem::path& file);
  /// The bytes, for readers in this process and in processes that it forks after keep_in.
  const FlightMap& map() const { return *map_; }

  /// Tells this one, too, until it is forgotten. Without any, that costs nothing.
  void tell(FlightObserver& observer) { observers_.push_back(&observer); }
  void forget(const FlightObserver& observer) { std::erase(observers_, &observer); }

  void set_identity(int rank, int ranks, const std::string& host);
  /// A step begins, or none (-1) is under way.
  void set_step(int64_t step);
  void set_layer(int layer);
  void set_phase(Phase phase);
  /// The step that set_step began is done.
  void finish_step();
  void set_end(FlightEnd end);

  /// The index of a new entry; -1 when all are taken.
  int add_group(const std::string& name, int first, int rank, int size);
  /// An exchange begins: fills in index, time and place, and returns the index.
  int64_t start(CollectiveRecord record);
  void complete(int64_t index);
  /// The rank blocks in an exchange, and no longer.
  void begin_wait(int64_t index);
  void end_wait();

 private:
  CollectiveRecord& record_at(int64_t index);
  void notify(FlightEvent event, int64_t time, int64_t index = -1) {
    for (FlightObserver* observer : observers_) observer->observe(event, time, index);
  }

  std::unique_ptr<FlightMap> owned_;
  FlightMap* map_;
  std::vector<FlightObserver*> observers_;
  int64_t waited_before_step_ = 0;
};

/// The path of a call for a record: the last two parts of it.
std::array<char, 48> short_path(const char* path);

/// Record `index` of a map that may be in use; nothing when it was overwritten or is being written.
std::optional<CollectiveRecord> read_record(const FlightMap& map, int64_t index);

/// A map of another process, or of one that is gone. Throws kBadData when the file is no flight
/// map of this version.
class FlightFile {
 public:
  /// `writable`: for the watcher, which writes what it sees.
  FlightFile(const std::filesystem::path& file, bool writable);
  ~FlightFile();
  FlightFile(const FlightFile&) = delete;
  FlightFile& operator=(const FlightFile&) = delete;

  FlightMap& map() const { return *map_; }

 private:
  FlightMap* map_;
};

}  // namespace tessera
