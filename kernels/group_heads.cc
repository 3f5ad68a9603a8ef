#include "kernels/group_heads.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

namespace {

/// `x` is [tokens, heads, d], `y` [groups, tokens, g * d].
void check_groups(const ConstTensorView& x, const ConstTensorView& y,
                  std::span<const int32_t> groups, int64_t group_heads, const char* who) {
  expect_floats(x, 3, concat(who, ": x").c_str(), "[tokens, heads, d]");
  const int64_t heads = x.shape()[1];
  CHECK(group_heads >= 1 && heads % group_heads == 0, who, ": group_heads is ", group_heads,
        ", expected a divisor of heads = ", heads);
  for (const int32_t group : groups) {
    CHECK(group >= 0 && group < heads / group_heads, who, ": group is ", group, ", expected 0 to ",
          heads / group_heads - 1);
  }
  const Shape wanted{static_cast<int64_t>(groups.size()), x.shape()[0], group_heads * x.shape()[2]};
  CHECK(y.shape() == wanted, who, ": y is ", y.shape(),
        ", expected [groups, tokens, g * d] = ", wanted);
}

}  // namespace

void take_groups(Stream& stream, const TakeGroups& a) {
  check_groups(a.x, a.y, a.groups, a.group_heads, "take_groups");
  CHECK(a.y.dtype() == a.x.dtype(), "take_groups: y is ", name_of(a.y.dtype()),
        ", expected the dtype of x, ", name_of(a.x.dtype()));
  if (stream.on(DeviceKind::kCpu)) cpu::take_groups(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::take_groups(stream, a);
  }
}

void add_groups(Stream& stream, const AddGroups& a) {
  check_groups(a.x, a.y, a.groups, a.group_heads, "add_groups");
  CHECK(a.y.dtype() == DType::kF32 || a.y.dtype() == a.x.dtype(), "add_groups: y is ",
        name_of(a.y.dtype()), ", expected f32 or the dtype of x, ", name_of(a.x.dtype()));
  if (stream.on(DeviceKind::kCpu)) cpu::add_groups(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::add_groups(stream, a);
  }
}

}  // namespace tessera
