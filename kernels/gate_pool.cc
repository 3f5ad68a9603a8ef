#include "kernels/gate_pool.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

namespace {

/// What both directions read, by name for the message.
struct Inputs {
  const char* who;
  const ConstTensorView& kbar;
  const ConstTensorView& alpha;
  const ConstTensorView& k0;
  const ConstTensorView& r;
  const SegmentGrid& grid;
  int64_t gate_keys;
};

void check(const Inputs& a) {
  CHECK(a.k0.shape().rank() == 3, a.who, ": k0 is ", a.k0.shape(),
        ", expected [groups, tokens, d]");
  CHECK(a.k0.dtype() == DType::kF32 || a.k0.dtype() == DType::kBF16, a.who, ": k0 is ",
        name_of(a.k0.dtype()), ", expected f32 or bf16");
  CHECK(a.gate_keys >= 1 && a.grid.block % a.gate_keys == 0, a.who, ": gate_keys is ", a.gate_keys,
        ", expected a divisor of the block, ", a.grid.block);
  const int64_t groups = a.k0.shape()[0];
  const int64_t keys = a.grid.keys();
  const int64_t d = a.k0.shape()[2];
  const bool one_rank = a.grid.run_starts.empty();
  const char* axes = one_rank ? "[groups, tokens, d]" : "[groups, keys, d]";
  const auto what = [&](const char* name) { return concat(a.who, ": ", name); };
  expect_tensor(a.k0, a.k0.dtype(), {groups, keys, d}, what("k0").c_str(), axes);
  // The keys of a part of the tokens do not say how many blocks whole segments have.
  const bool whole = !one_rank && a.kbar.shape().rank() == 3 && a.kbar.shape()[1] >= a.gate_keys;
  const int64_t blocks = whole ? a.kbar.shape()[1] / a.gate_keys : a.grid.max_blocks();
  expect_tensor(a.kbar, a.k0.dtype(), {groups, blocks * a.gate_keys, d}, what("kbar").c_str(),
                "[groups, max_blocks * gate_keys, d]");
  expect_tensor(a.alpha, DType::kF32, {groups, keys}, what("alpha").c_str(),
                one_rank ? "[groups, tokens]" : "[groups, keys]");
  expect_tensor(a.r, DType::kF32, {groups, d}, what("r").c_str(), "[groups, d]");
}

}  // namespace

void gate_pool_forward(Stream& stream, const GatePoolForward& a) {
  check({"gate_pool_forward", a.kbar, a.alpha, a.k0, a.r, a.grid, a.gate_keys});
  if (stream.on(DeviceKind::kCpu)) cpu::gate_pool_forward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::gate_pool_forward(stream, a);
  }
}

void gate_pool_backward(Stream& stream, const GatePoolBackward& a) {
  check({"gate_pool_backward", a.kbar, a.alpha, a.k0, a.r, a.grid, a.gate_keys});
  expect_tensor(a.dkbar, DType::kF32, a.kbar.shape(), "gate_pool_backward: dkbar",
                "[groups, max_blocks * gate_keys, d]");
  if (!a.dk0.empty()) {
    expect_tensor(a.dk0, DType::kF32, a.k0.shape(), "gate_pool_backward: dk0",
                  a.grid.run_starts.empty() ? "[groups, tokens, d]" : "[groups, keys, d]");
  }
  if (!a.dr.empty()) {
    expect_tensor(a.dr, DType::kF32, a.r.shape(), "gate_pool_backward: dr", "[groups, d]");
  }
  if (stream.on(DeviceKind::kCpu)) cpu::gate_pool_backward(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::gate_pool_backward(stream, a);
  }
}

}  // namespace tessera
