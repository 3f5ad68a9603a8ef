#include "kernels/core/work_graph.h"

#include <gtest/gtest.h>

#include "kernels/core/buffer.h"
#include "kernels/core/copy.h"
#include "kernels/core/event.h"
#include "kernels/rms_norm.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

bool on_gpu() {
  return support::device().kind == DeviceKind::kGpu;
}

// y = norm(x), and then x = y for the next run: what a run reads is what is there then.
TEST(WorkGraph, DoesItsWorkInEveryRunAndNotBefore) {
  Stream stream(support::device());
  const support::Tensor x = support::random_tensor(DType::kF32, {3, 8}, 1);
  const support::Tensor weight = support::filled(DType::kF32, {8}, 2);
  const support::Tensor y(DType::kF32, {3, 8});
  const support::Tensor rstd(DType::kF32, {3});
  const RmsNormForward norm{
      .y = y, .rstd = rstd, .x = x.view(), .weight = weight.view(), .epsilon = 1e-5f};
  rms_norm_forward(stream, norm);
  stream.synchronize();
  const support::Tensor once = support::copy_of(y.view());
  const support::Tensor twice = support::copy_of(y.view());
  rms_norm_forward(
      stream,
      {.y = twice, .rstd = rstd, .x = once.view(), .weight = weight.view(), .epsilon = 1e-5f});
  stream.synchronize();
  std::fill(y.as<float>().begin(), y.as<float>().end(), -1.0f);

  WorkGraph graph(stream, [&] {
    rms_norm_forward(stream, norm);
    copy(stream, y.view(), x);
  });
  stream.synchronize();
  EXPECT_EQ(y.as<float>()[0], -1.0f);
  graph.run();
  stream.synchronize();
  support::expect_same_bits(y.view(), once.view(), "first run");
  graph.run();
  stream.synchronize();
  support::expect_same_bits(y.view(), twice.view(), "second run");
}

TEST(WorkGraph, TakesInWorkOfStreamsThatWaitForIt) {
  Stream stream(support::device());
  Stream beside(support::device());
  const Buffer a = Buffer::pinned(support::device(), 4);
  const Buffer b(support::device(), 4);
  const Buffer c = Buffer::pinned(support::device(), 4);
  const auto value = [](const Buffer& buffer) -> int32_t& {
    return buffer.view(DType::kI32, {1}).as<int32_t>()[0];
  };
  Event begun(support::device());
  Event ended(support::device());
  WorkGraph graph(stream, [&] {
    copy(stream, a.view(DType::kI32, {1}), b.view(DType::kI32, {1}));
    begun.record(stream);
    begun.hold(beside);
    copy(beside, b.view(DType::kI32, {1}), c.view(DType::kI32, {1}));
    ended.record(beside);
    ended.hold(stream);
  });
  for (const int32_t number : {5, 6}) {
    value(a) = number;
    graph.run();
    stream.synchronize();
    EXPECT_EQ(value(c), number);
  }
}

TEST(WorkGraph, LetsTheHostInBetweenItsParts) {
  Stream stream(support::device());
  const Buffer from = Buffer::pinned(support::device(), 4);
  const Buffer to = Buffer::pinned(support::device(), 4);
  const Buffer there(support::device(), 4);
  const auto view = [](const Buffer& buffer) { return buffer.view(DType::kI32, {1}); };
  const auto value = [&](const Buffer& buffer) -> int32_t& {
    return view(buffer).as<int32_t>()[0];
  };
  std::vector<int32_t> seen;
  WorkGraph graph(stream, [&](WorkGraph& self) {
    self.between([&] { value(from) *= 2; });
    copy(stream, view(from), view(there));
    copy(stream, view(there), view(to));
    self.between([&] {
      stream.synchronize();
      seen.push_back(value(to));
      value(from) += 1;
    });
    copy(stream, view(from), view(there));
    copy(stream, view(there), view(to));
  });
  EXPECT_EQ(graph.pieces(), on_gpu() ? 4 : 0);
  EXPECT_EQ(graph.calls(), on_gpu() ? 2 : 0);
  EXPECT_TRUE(seen.empty());
  value(from) = 5;
  graph.run();
  stream.synchronize();
  EXPECT_EQ(value(to), 11);
  graph.run();
  stream.synchronize();
  EXPECT_EQ(value(to), 23);
  EXPECT_EQ(seen, (std::vector<int32_t>{10, 22}));
}

TEST(WorkGraph, LeavesTheStreamUsableWhenWorkThrows) {
  Stream stream(support::device());
  const auto fails = [] { CHECK(false, "no more work"); };
  if (on_gpu()) {
    support::expect_error([&] { WorkGraph graph(stream, fails); }, "no more work");
    support::expect_error([&] { WorkGraph graph(stream, [&] { stream.synchronize(); }); },
                          "cudaStreamSynchronize");
    const auto fails_in_part_two = [&](WorkGraph& graph) {
      graph.between([] {});
      fails();
    };
    support::expect_error([&] { WorkGraph graph(stream, fails_in_part_two); }, "no more work");
  } else {
    WorkGraph graph(stream, fails);
    support::expect_error([&] { graph.run(); }, "no more work");
  }
  const support::Tensor from = support::filled(DType::kI32, {2}, 3);
  const support::Tensor to(DType::kI32, {2});
  copy(stream, from.view(), to);
  stream.synchronize();
  EXPECT_EQ(to.as<int32_t>()[1], 3);
}

}  // namespace
}  // namespace tessera
