#include "kernels/core/copy.h"

#include <cstring>

#include "kernels/core/build.h"
#include "kernels/core/error.h"

namespace tessera {

namespace gpu {
enum class Direction { kToDevice, kToHost, kOnDevice };
void copy_bytes(void* stream, const void* from, void* to, int64_t bytes, Direction direction);
}  // namespace gpu

namespace {

bool in_host_memory(const ConstTensorView& tensor) {
  return tensor.device().kind == DeviceKind::kCpu;
}

void check_reach(const Stream& stream, const ConstTensorView& tensor, const char* what) {
  CHECK(in_host_memory(tensor) || tensor.device() == stream.device(), "copy: ", what, " ",
        tensor.shape(), " is neither in host memory nor on the device of the stream");
}

}  // namespace

void copy(Stream& stream, ConstTensorView from, TensorView to) {
  CHECK(from.dtype() == to.dtype() && from.elements() == to.elements(), "copy: to is ",
        name_of(to.dtype()), " ", to.shape(), ", expected as many elements as from, ",
        name_of(from.dtype()), " ", from.shape());
  if (stream.on(DeviceKind::kPlan) || from.bytes() == 0) return;
  check_reach(stream, from, "from");
  check_reach(stream, to, "to");
  if constexpr (kCudaBuilt) {
    if (!in_host_memory(from) || !in_host_memory(to)) {
      const auto direction = in_host_memory(from) ? gpu::Direction::kToDevice
                             : in_host_memory(to) ? gpu::Direction::kToHost
                                                  : gpu::Direction::kOnDevice;
      gpu::copy_bytes(stream.handle(), from.data(), to.data(), from.bytes(), direction);
      return;
    }
  }
  stream.synchronize();
  std::memcpy(to.data(), from.data(), static_cast<size_t>(from.bytes()));
}

TensorView to_arena(Stream& stream, Arena& arena, ConstTensorView values, const char* name) {
  const TensorView tensor = arena.allocate(values.dtype(), values.shape(), name);
  copy(stream, values, tensor);
  return tensor;
}

ConstTensorView on_host(Stream& stream, ConstTensorView x, Buffer& memory) {
  CHECK(!stream.on(DeviceKind::kPlan), "on_host: there is nothing to read on a plan");
  if (!in_host_memory(x)) {
    if (memory.bytes() < x.bytes()) memory = Buffer::pinned(stream.device(), x.bytes());
    const TensorView to = memory.view(x.dtype(), x.shape());
    copy(stream, x, to);
    x = to;
  }
  stream.synchronize();
  return x;
}

}  // namespace tessera
