#include "kernels/core/arena.h"

#include <algorithm>

namespace tessera {

Arena::Arena(Device device, int64_t capacity)
    : buffer_(device, capacity), device_(device), capacity_(capacity) {}

TensorView Arena::allocate(DType dtype, Shape shape, const char* name) {
  const int64_t begin = top_;
  const int64_t end = begin + aligned(shape.elements() * size_of(dtype));
  if (device_.kind != DeviceKind::kPlan) {
    CHECK(end <= capacity_, "activation arena is full at '", name, "' ", shape, ": needs ", end,
          " bytes, has ", capacity_);
  }
  top_ = end;
  high_water_ = std::max(high_water_, top_);
  if (device_.kind == DeviceKind::kPlan) return {nullptr, dtype, shape, device_};
  return buffer_.view(dtype, shape, begin);
}

void Arena::release(int64_t mark) {
  CHECK(mark >= 0 && mark <= top_, "arena: release to ", mark, " bytes, but only ", top_,
        " are in use");
  top_ = mark;
}

}  // namespace tessera
