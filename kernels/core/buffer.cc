#include "kernels/core/buffer.h"

#include <cstring>
#include <new>
#include <utility>

#include "kernels/core/build.h"

namespace tessera {

namespace gpu {
void* allocate_zeroed(int device_index, int64_t bytes);
void* allocate_managed(int device_index, int64_t bytes);
void release(void* data) noexcept;
}  // namespace gpu

Buffer::Buffer(Device device, int64_t bytes) : bytes_(bytes), device_(device) {
  CHECK(bytes >= 0, "buffer of ", bytes, " bytes");
  if (device.kind == DeviceKind::kPlan || bytes == 0) return;
  if constexpr (kCudaBuilt) {
    if (device.kind == DeviceKind::kGpu) {
      data_ = device.managed ? gpu::allocate_managed(device.index, bytes)
                             : gpu::allocate_zeroed(device.index, bytes);
      return;
    }
  }
  data_ = ::operator new (static_cast<size_t>(bytes), std::align_val_t{kAlignment});
  std::memset(data_, 0, static_cast<size_t>(bytes));
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if constexpr (kCudaBuilt) {
    if (device_.kind == DeviceKind::kGpu) {
      gpu::release(data_);
      return;
    }
  }
  ::operator delete (data_, std::align_val_t{kAlignment});
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  return *this;
}

TensorView Buffer::view(DType dtype, Shape shape, int64_t offset_bytes) const {
  const int64_t needed = shape.elements() * size_of(dtype);
  CHECK(offset_bytes >= 0 && offset_bytes + needed <= bytes_, "view of ", needed, " bytes at ",
        offset_bytes, " does not fit in a buffer of ", bytes_);
  char* base = static_cast<char*>(data_);
  return {base == nullptr ? nullptr : base + offset_bytes, dtype, shape, device_};
}

}  // namespace tessera
