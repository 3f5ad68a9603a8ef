#include <cstring>
#include <new>
#include <utility>

#include "kernels/core/buffer.h"
#include "tests/support/device.h"

namespace tessera::support {

Device device() {
  return {};
}
bool kernels_can_throw() {
  return true;
}

void copy_bytes(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

SharedBytes::SharedBytes(int64_t bytes) {
  if (bytes == 0) return;
  data_ = ::operator new (static_cast<size_t>(bytes), std::align_val_t{Buffer::kAlignment});
  std::memset(data_, 0, static_cast<size_t>(bytes));
}
SharedBytes::~SharedBytes() {
  ::operator delete (data_, std::align_val_t{Buffer::kAlignment});
}
SharedBytes::SharedBytes(SharedBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)) {}
SharedBytes& SharedBytes::operator=(SharedBytes&& other) noexcept {
  std::swap(data_, other.data_);
  return *this;
}

}  // namespace tessera::support
