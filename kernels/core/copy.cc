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

bool on_host(const ConstTensorView& tensor) {
  return tensor.device().kind == DeviceKind::kCpu;
}

void check_reach(const Stream& stream, const ConstTensorView& tensor, const char* what) {
  CHECK(on_host(tensor) || tensor.device() == stream.device(), "copy: ", what, " ", tensor.shape(),
        " is neither in host memory nor on the device of the stream");
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
    if (!on_host(from) || !on_host(to)) {
      const auto direction = on_host(from) ? gpu::Direction::kToDevice
                             : on_host(to) ? gpu::Direction::kToHost
                                           : gpu::Direction::kOnDevice;
      gpu::copy_bytes(stream.handle(), from.data(), to.data(), from.bytes(), direction);
      return;
    }
  }
  stream.synchronize();
  std::memcpy(to.data(), from.data(), static_cast<size_t>(from.bytes()));
}

}  // namespace tessera
