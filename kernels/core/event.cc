#include "kernels/core/event.h"

#include <utility>

#include "kernels/core/build.h"
#include "kernels/core/error.h"

namespace tessera {

namespace gpu {
void* create_event(int device_index, bool timed);
void destroy_event(void* handle) noexcept;
void record_event(void* handle, void* stream);
void hold_stream(void* stream, void* handle);
void wait_for_event(void* handle);
bool event_passed(void* handle);
double milliseconds_between(void* from, void* to);
}  // namespace gpu

namespace {

void check_place(const Stream& stream, const Device& device, const char* call) {
  CHECK(stream.device() == device, "Event::", call, ": the stream is on another device");
}

}  // namespace

Event::Event(Device device, bool timed) : device_(device), timed_(timed) {
  if constexpr (kCudaBuilt) {
    if (device.kind == DeviceKind::kGpu) handle_ = gpu::create_event(device.index, timed);
  }
}

Event::~Event() {
  if constexpr (kCudaBuilt) {
    if (handle_ != nullptr) gpu::destroy_event(handle_);
  }
}

Event::Event(Event&& other) noexcept
    : device_(other.device_),
      timed_(other.timed_),
      recorded_(other.recorded_),
      handle_(std::exchange(other.handle_, nullptr)) {}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(timed_, other.timed_);
  std::swap(recorded_, other.recorded_);
  std::swap(handle_, other.handle_);
  return *this;
}

void Event::record(Stream& stream) {
  check_place(stream, device_, "record");
  if (timed_) recorded_ = std::chrono::steady_clock::now();
  if constexpr (kCudaBuilt) {
    if (handle_ != nullptr) gpu::record_event(handle_, stream.handle());
  }
}

void Event::hold(Stream& stream) const {
  check_place(stream, device_, "hold");
  if constexpr (kCudaBuilt) {
    if (handle_ != nullptr) gpu::hold_stream(stream.handle(), handle_);
  }
}

void Event::wait() const {
  if constexpr (kCudaBuilt) {
    if (handle_ != nullptr) gpu::wait_for_event(handle_);
  }
}

bool Event::passed() const {
  if constexpr (kCudaBuilt) {
    if (handle_ != nullptr) return gpu::event_passed(handle_);
  }
  return true;
}

double Event::milliseconds_since(const Event& earlier) const {
  CHECK(timed_ && earlier.timed_ && device_ == earlier.device_,
        "Event::milliseconds_since: both events must be timed, and of one device");
  if constexpr (kCudaBuilt) {
    if (handle_ != nullptr) return gpu::milliseconds_between(earlier.handle_, handle_);
  }
  return std::chrono::duration<double, std::milli>(recorded_ - earlier.recorded_).count();
}

}  // namespace tessera
