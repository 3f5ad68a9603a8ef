#pragma once

#include <chrono>

#include "kernels/core/device.h"

namespace tessera {

/// A point in the work of a stream, for other streams and the host to wait for. On kCpu and kPlan
/// work is done when its call returns, so that every point is passed already. Move-only.
class Event {
 public:
  /// `timed`: it keeps the time too, for milliseconds_since. That costs a GPU a little.
  explicit Event(Device device, bool timed = false);
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;

  /// The point is now behind all work that was given to `stream`, which is on the event's device.
  void record(Stream& stream);
  /// What `stream` is given from now on begins when the point is passed. The host does not wait.
  /// No effect before the first record, as with the two below.
  void hold(Stream& stream) const;
  /// The host waits until the point is passed. Throws when work before it has failed.
  void wait() const;
  /// Whether the point is passed. Throws as wait.
  bool passed() const;
  /// From the moment `earlier` was passed to the moment this one was, by the clock of the device;
  /// on kCpu and kPlan between their records. Both are timed, recorded and passed.
  double milliseconds_since(const Event& earlier) const;

 private:
  Device device_;
  bool timed_ = false;
  std::chrono::steady_clock::time_point recorded_;  // where work is done when its call returns
  void* handle_ = nullptr;                          // the cudaEvent_t
};

}  // namespace tessera
