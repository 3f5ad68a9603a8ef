#pragma once

#include "kernels/core/device.h"

namespace tessera {

/// A point in the work of a stream, for other streams and the host to wait for. On kCpu and kPlan
/// work is done when its call returns, so that every point is passed already. Move-only.
class Event {
 public:
  explicit Event(Device device);
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

 private:
  Device device_;
  void* handle_ = nullptr;  // the cudaEvent_t
};

}  // namespace tessera
