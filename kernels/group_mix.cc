#include "kernels/group_mix.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

namespace {

constexpr const char* kHeads = "[tokens, heads, d]";

void check_shares(const ConstTensorView& shares, int64_t heads, const char* who) {
  CHECK(shares.dtype() == DType::kF32 && shares.shape().rank() == 1, who, ": shares is ",
        name_of(shares.dtype()), " ", shares.shape(), ", expected f32 [groups]");
  const int64_t groups = shares.shape()[0];
  CHECK(groups >= 1 && heads % groups == 0, who, ": shares has ", groups,
        " groups, expected a divisor of heads = ", heads);
}

}  // namespace

void mix_groups(Stream& stream, const MixGroups& a) {
  const DType dtype = a.y.dtype();
  const Shape& shape = a.y.shape();
  expect_floats(a.y, 3, "mix_groups: y", kHeads);
  expect_tensor(a.a, dtype, shape, "mix_groups: a", kHeads);
  expect_tensor(a.b, dtype, shape, "mix_groups: b", kHeads);
  check_shares(a.shares, shape[1], "mix_groups");
  if (stream.on(DeviceKind::kCpu)) cpu::mix_groups(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::mix_groups(stream, a);
  }
}

void mix_groups_backward(Stream& stream, const MixGroupsBackward& a) {
  const DType dtype = a.dy.dtype();
  const Shape& shape = a.dy.shape();
  expect_floats(a.dy, 3, "mix_groups_backward: dy", kHeads);
  expect_tensor(a.a, dtype, shape, "mix_groups_backward: a", kHeads);
  expect_tensor(a.b, dtype, shape, "mix_groups_backward: b", kHeads);
  expect_tensor(a.da, dtype, shape, "mix_groups_backward: da", kHeads);
  expect_tensor(a.db, dtype, shape, "mix_groups_backward: db", kHeads);
  check_shares(a.shares, shape[1], "mix_groups_backward");
  expect_tensor(a.slopes, DType::kF32, {a.shares.shape()[0], shape[0]},
                "mix_groups_backward: slopes", "[groups, tokens]");
  if (stream.on(DeviceKind::kCpu)) cpu::mix_groups_backward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::mix_groups_backward(stream, a);
  }
}

}  // namespace tessera
