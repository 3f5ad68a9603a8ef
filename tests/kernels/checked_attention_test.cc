#include "kernels/checked_attention.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kernels/core/copy.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/segments.h"

// Plans that do what our kernel does, or something else, stand in for those of a library.

namespace tessera::gpu {
namespace {

using support::Segments;
using support::Tensor;

struct Call {
  explicit Call(const std::vector<int64_t>& lengths = {150}, int64_t tokens_seen = 40)
      : segments(lengths, 64),
        q(support::random_tensor(DType::kBF16, {segments.tokens(), 4, 16}, 1)),
        k(support::random_tensor(DType::kBF16, {segments.tokens(), 2, 16}, 2)),
        v(support::random_tensor(DType::kBF16, {segments.tokens(), 2, 16}, 3)),
        o(support::filled(DType::kBF16, q.shape(), 77)),
        lse(support::filled(DType::kF32, {4, segments.tokens()}, 77)),
        groups(2),
        window(tokens_seen) {
    std::iota(groups.begin(), groups.end(), 0);
  }
  AttentionForward arguments() const {
    return {.o = o,
            .lse = lse,
            .q = q,
            .k = k,
            .v = v,
            .grid = segments.grid(),
            .groups = groups,
            .window = window,
            .sink_tokens = 0,
            .scale = 0.25f};
  }

  Segments segments;
  Tensor q, k, v, o, lse;
  std::vector<int32_t> groups;
  int64_t window;
};

/// Computes `call` by our kernel, changed by `change(arguments, number of the run)`, into where a
/// plan is told to.
class StandIn final : public AttentionPlan {
 public:
  using Change = std::function<void(AttentionForward&, int)>;
  StandIn(const Call& call, Change change, int& runs)
      : call_(call), change_(std::move(change)), runs_(runs) {}
  int64_t workspace_bytes() const override { return 1000; }
  void run(Stream& stream, const AttentionPlanTensors& tensors) override {
    AttentionForward a = call_.arguments();
    const PlannedAttention how = *planned_attention(a);
    EXPECT_EQ(tensors.q, a.q.as<BF16>().data() + how.first_head * how.shape.d);
    EXPECT_EQ(tensors.k, a.k.as<BF16>().data() + how.first_kv_head * how.shape.d);
    EXPECT_EQ(tensors.v, a.v.as<BF16>().data() + how.first_kv_head * how.shape.d);
    EXPECT_EQ(tensors.scale, a.scale);
    a.o = TensorView(static_cast<BF16*>(tensors.o) - how.first_head * how.shape.d, DType::kBF16,
                     a.o.shape(), a.o.device());
    const Tensor lse(DType::kF32, a.lse.shape());
    const bool several = how.shape.segments > 1;
    a.lse = several ? lse.view()
                    : TensorView(tensors.lse - how.first_head * how.shape.tokens, DType::kF32,
                                 a.lse.shape(), a.lse.device());
    change_(a, runs_++);
    own_attention_forward(stream, a);
    if (several) by_token(stream, how, lse, tensors);
  }

 private:
  void by_token(Stream& stream, const PlannedAttention& how, const Tensor& lse,
                const AttentionPlanTensors& tensors) {
    const AttentionPlanShape& shape = how.shape;
    const auto numbers = [&](const int32_t* of_device, int64_t count) {
      return to_vector<int32_t>(stream, {of_device, DType::kI32, {count}, stream.device()});
    };
    std::vector<int32_t> starts = numbers(call_.segments.grid().starts.as<int32_t>().data(),
                                          call_.segments.grid().starts.elements());
    starts.resize(static_cast<size_t>(shape.segments + 1), starts.back());
    const auto times = [&](int64_t factor) {
      std::vector<int32_t> products = starts;
      for (int32_t& x : products) x *= static_cast<int32_t>(factor);
      return products;
    };
    EXPECT_EQ(numbers(tensors.q_offsets, shape.segments + 1), times(shape.row_heads * shape.d));
    EXPECT_EQ(numbers(tensors.k_offsets, shape.segments + 1), times(shape.row_kv_heads * shape.d));
    EXPECT_EQ(numbers(tensors.lse_offsets, shape.segments + 1), times(shape.heads));
    std::vector<int32_t> lengths(starts.begin() + 1, starts.end());
    for (size_t s = 0; s < lengths.size(); ++s) lengths[s] -= starts[s];
    EXPECT_EQ(numbers(tensors.lengths, shape.segments), lengths);
    std::vector<float> rows;
    for (int64_t t = 0; t < shape.tokens; ++t) {
      for (int64_t h = 0; h < shape.heads; ++h) {
        rows.push_back(
            lse.as<float>()[static_cast<size_t>((how.first_head + h) * shape.tokens + t)]);
      }
    }
    copy(stream, host_view(rows),
         {tensors.lse, DType::kF32, {static_cast<int64_t>(rows.size())}, stream.device()});
  }

  const Call& call_;
  Change change_;
  int& runs_;
};

CheckedAttention checked(const Call& call, const StandIn::Change& change, int& runs) {
  return CheckedAttention([&call, change, &runs](const AttentionPlanShape&, int64_t) {
    return std::make_unique<StandIn>(call, change, runs);
  });
}
void unchanged(AttentionForward&, int) {}

TEST(CheckedAttention, BelievesARightPlan) {
  for (const std::vector<int32_t>& groups : {std::vector<int32_t>{0, 1}, {1}}) {
    Call call({152});
    call.groups = groups;
    int runs = 0;
    CheckedAttention attention = checked(call, unchanged, runs);
    Stream stream(support::device());
    EXPECT_EQ(attention.verdict(stream, call.arguments()), nullptr);
    EXPECT_TRUE(attention.forward(stream, call.arguments()));
    EXPECT_EQ(runs, 2);
    ASSERT_NE(attention.verdict(stream, call.arguments()), nullptr);
    EXPECT_TRUE(attention.verdict(stream, call.arguments())->believed());
    EXPECT_TRUE(attention.forward(stream, call.arguments()));
    EXPECT_EQ(runs, 3);
    stream.synchronize();
    Call expected({152});
    expected.groups = groups;
    own_attention_forward(stream, expected.arguments());
    stream.synchronize();
    support::expect_same_bits(call.o, expected.o, "o");
    support::expect_same_bits(call.lse, expected.lse, "lse");
  }
}

TEST(CheckedAttention, TellsAPlanWhereSegmentsAre) {
  for (const std::vector<int32_t>& groups : {std::vector<int32_t>{0, 1}, {1}}) {
    Call call({60, 0, 70, 30, 5});
    call.groups = groups;
    int runs = 0;
    CheckedAttention attention = checked(call, unchanged, runs);
    Stream stream(support::device());
    EXPECT_TRUE(attention.forward(stream, call.arguments()));
    Call expected({60, 0, 70, 30, 5});
    expected.groups = groups;
    own_attention_forward(stream, expected.arguments());
    support::expect_same_bits(call.o, expected.o, "o");
    support::expect_same_bits(call.lse, expected.lse, "lse");
  }
}

/// A plan that is asked once, and not again.
void expect_refused(const StandIn::Change& change, int expected_runs) {
  const Call call;
  int runs = 0;
  CheckedAttention attention = checked(call, change, runs);
  Stream stream(support::device());
  EXPECT_FALSE(attention.forward(stream, call.arguments()));
  EXPECT_FALSE(attention.forward(stream, call.arguments()));
  EXPECT_EQ(runs, expected_runs);
}

TEST(CheckedAttention, RefusesAWrongPlan) {
  expect_refused([](AttentionForward& a, int) { a.window += 1; }, 2);
  expect_refused([](AttentionForward& a, int) { a.window -= 1; }, 2);
  expect_refused([](AttentionForward& a, int) { a.scale *= 1.02f; }, 2);
  expect_refused([](AttentionForward& a, int) { std::swap(a.k, a.v); }, 2);
  // nothing computed at all
  expect_refused([](AttentionForward& a, int) { a.groups = {}; }, 2);
}

TEST(CheckedAttention, RefusesAPlanThatIsNotTheSameTwice) {
  expect_refused([](AttentionForward& a, int run) { a.scale *= run == 1 ? 1.0001f : 1.0f; }, 2);
}

TEST(CheckedAttention, RefusesAPlanThatThrows) {
  expect_refused([](AttentionForward&, int) { throw Error(ExitCode::kError, "no plan"); }, 1);
}

TEST(CheckedAttention, StopsUsingAPlanThatThrowsLater) {
  const Call call;
  int runs = 0;
  CheckedAttention attention = checked(
      call,
      [](AttentionForward&, int run) {
        if (run == 2) throw Error(ExitCode::kError, "no more");
      },
      runs);
  Stream stream(support::device());
  EXPECT_TRUE(attention.forward(stream, call.arguments()));
  EXPECT_FALSE(attention.forward(stream, call.arguments()));
  EXPECT_FALSE(attention.forward(stream, call.arguments()));
  EXPECT_EQ(runs, 3);
}

TEST(CheckedAttention, LivesWithoutAPlan) {
  const Call call;
  Stream stream(support::device());
  int asked = 0;
  CheckedAttention none([&](const AttentionPlanShape&, int64_t most_bytes) {
    ++asked;
    EXPECT_GT(most_bytes, 0);
    return nullptr;
  });
  CheckedAttention broken([&](const AttentionPlanShape&, int64_t) -> std::unique_ptr<StandIn> {
    ++asked;
    throw Error(ExitCode::kError, "no library");
  });
  for (int i = 0; i < 2; ++i) {
    EXPECT_FALSE(none.forward(stream, call.arguments()));
    EXPECT_FALSE(broken.forward(stream, call.arguments()));
  }
  EXPECT_EQ(asked, 2);
}

TEST(CheckedAttention, MakesPlansForSoManyShapes) {
  Stream stream(support::device());
  size_t asked = 0;
  CheckedAttention attention([&](const AttentionPlanShape&, int64_t) {
    ++asked;
    return nullptr;
  });
  for (size_t i = 0; i < CheckedAttention::kMostShapes + 5; ++i) {
    const Call call({150}, 10 + static_cast<int64_t>(i));
    EXPECT_FALSE(attention.forward(stream, call.arguments()));
  }
  EXPECT_EQ(asked, CheckedAttention::kMostShapes);
}

TEST(CheckedAttention, LeavesAloneWhatIsNotServed) {
  Stream stream(support::device());
  CheckedAttention attention(
      [](const AttentionPlanShape&, int64_t) -> std::unique_ptr<AttentionPlan> {
        ADD_FAILURE() << "asked for a plan";
        return nullptr;
      });
  EXPECT_FALSE(attention.forward(stream, Call({20}).arguments()));
}

}  // namespace
}  // namespace tessera::gpu
