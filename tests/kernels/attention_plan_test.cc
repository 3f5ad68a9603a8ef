#include "kernels/attention_plan.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/support/random_tensor.h"
#include "tests/support/segments.h"

namespace tessera {
namespace {

using support::Segments;
using support::Tensor;

/// A call that is served, to be changed.
struct Call {
  explicit Call(const std::vector<int64_t>& lengths = {300}, int64_t d = 64,
                DType dtype = DType::kBF16)
      : segments(lengths, 64),
        q(dtype, {segments.tokens(), 8, d}),
        k(dtype, {segments.tokens(), 4, d}),
        lse(DType::kF32, {8, segments.tokens()}),
        groups(4) {
    std::iota(groups.begin(), groups.end(), 0);
  }
  AttentionForward arguments() const {
    return {.o = q,
            .lse = lse,
            .q = q,
            .k = k,
            .v = k,
            .grid = segments.grid(),
            .groups = groups,
            .window = int64_t{1} << 40,
            .sink_tokens = 0,
            .scale = 1};
  }
  template <class Change>
  std::optional<PlannedAttention> planned(const Change& change) const {
    AttentionForward a = arguments();
    change(a);
    return planned_attention(a);
  }
  std::optional<PlannedAttention> planned() const { return planned_attention(arguments()); }

  Segments segments;
  Tensor q, k, lse;
  std::vector<int32_t> groups;
};

TEST(AttentionPlan, ServesWholeAttention) {
  const auto how = Call().planned();
  ASSERT_TRUE(how);
  EXPECT_EQ(how->shape, (AttentionPlanShape{.tokens = 300,
                                            .segments = 1,
                                            .heads = 8,
                                            .kv_heads = 4,
                                            .row_heads = 8,
                                            .row_kv_heads = 4,
                                            .d = 64,
                                            .window = 0}));
  EXPECT_EQ(how->first_head, 0);
  EXPECT_EQ(how->first_kv_head, 0);
}

TEST(AttentionPlan, ServesNeighbouringGroups) {
  Call call;
  call.groups = {1, 2};
  const auto how = call.planned();
  ASSERT_TRUE(how);
  EXPECT_EQ(how->shape.heads, 4);
  EXPECT_EQ(how->shape.kv_heads, 2);
  EXPECT_EQ(how->shape.row_heads, 8);
  EXPECT_EQ(how->shape.row_kv_heads, 4);
  EXPECT_EQ(how->first_head, 2);
  EXPECT_EQ(how->first_kv_head, 1);
}

TEST(AttentionPlan, RefusesOtherGroups) {
  Call call;
  for (const std::vector<int32_t>& groups :
       {std::vector<int32_t>{}, {0, 2}, {2, 1}, {1, 1}, {0, 1, 3}}) {
    call.groups = groups;
    EXPECT_FALSE(call.planned());
  }
  // Heads 1 to 8 of 4 groups of 3: groups 0 and 2 are cut.
  for (const auto& [groups, served] :
       {std::pair{std::vector<int32_t>{1}, true}, {{0}, false}, {{1, 2}, true}, {{2, 3}, false}}) {
    call.groups = groups;
    const auto how = call.planned([](AttentionForward& a) {
      a.group_heads = 3;
      a.first_head = 1;
    });
    EXPECT_EQ(how.has_value(), served) << groups.front();
    if (served) {
      EXPECT_EQ(how->first_head, 2);
    }
  }
}

TEST(AttentionPlan, RoundsSegmentsUp) {
  for (const auto& [pieces, segments] :
       {std::pair<size_t, int64_t>{1, 1}, {2, 2}, {3, 4}, {5, 8}, {33, 64}, {64, 64}}) {
    const auto how = Call(std::vector<int64_t>(pieces, 200)).planned();
    ASSERT_TRUE(how);
    EXPECT_EQ(how->shape.segments, segments);
  }
  EXPECT_FALSE(Call(std::vector<int64_t>(65, 200)).planned());
}

TEST(AttentionPlan, KnowsWindowsAndSinks) {
  const Call call;
  EXPECT_EQ(call.planned([](auto& a) { a.window = 299; })->shape.window, 299);
  EXPECT_EQ(call.planned([](auto& a) { a.window = 300; })->shape.window, 0);
  EXPECT_FALSE(call.planned([](auto& a) {
    a.window = 299;
    a.sink_tokens = 1;
  }));
  // Without a window every token sees the sink tokens anyway.
  EXPECT_TRUE(call.planned([](auto& a) { a.sink_tokens = 1; }));
  const Tensor logits(DType::kF32, {8});
  EXPECT_FALSE(call.planned([&](auto& a) { a.sink_logits = logits; }));
}

TEST(AttentionPlan, RefusesWhatLibrariesLack) {
  EXPECT_FALSE(Call({300}, 64, DType::kF32).planned());
  EXPECT_TRUE(Call({300}, 128).planned());
  EXPECT_FALSE(Call({300}, 136).planned());
  EXPECT_TRUE(Call({128}).planned());
  EXPECT_FALSE(Call({127}).planned());
}

TEST(AttentionPlan, RefusesTheGridOfOneOfSeveralRanks) {
  const Call call;
  const Tensor zero(DType::kI32, {1});
  for (const auto member :
       {&SegmentGrid::firsts, &SegmentGrid::piece_segments, &SegmentGrid::run_starts}) {
    SegmentGrid grid = call.segments.grid();
    grid.*member = zero;
    const AttentionForward a = call.arguments();
    EXPECT_FALSE(planned_attention({.o = a.o,
                                    .lse = a.lse,
                                    .q = a.q,
                                    .k = a.k,
                                    .v = a.v,
                                    .grid = grid,
                                    .groups = a.groups,
                                    .window = a.window,
                                    .sink_tokens = 0,
                                    .scale = 1}));
  }
}

TEST(AttentionPlan, RefusesCrookedAddresses) {
  const Call call;
  EXPECT_FALSE(call.planned([](auto& a) {
    a.k = ConstTensorView(static_cast<const char*>(a.k.data()) + 2, a.k.dtype(), a.k.shape(),
                          a.k.device());
  }));
  // lse of head 2 begins 2 x 301 floats behind that of head 0, lse of head 4 does 4 x 301.
  Call odd({301});
  odd.groups = {1};
  EXPECT_FALSE(odd.planned());
  odd.groups = {2};
  EXPECT_TRUE(odd.planned());
}

TEST(AttentionPlan, SaysItsShape) {
  std::ostringstream out;
  out << Call({100, 100, 100}).planned([](auto& a) { a.window = 20; })->shape;
  EXPECT_EQ(out.str(), "300 tokens in 4 segments, heads 8/8, kv_heads 4/4, d 64, window 20");
}

}  // namespace
}  // namespace tessera
