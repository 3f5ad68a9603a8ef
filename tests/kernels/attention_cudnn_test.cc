#include "kernels/attention_cudnn.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kernels/checked_attention.h"
#include "kernels/core/build.h"
#include "tests/support/random_tensor.h"
#include "tests/support/segments.h"

namespace tessera::gpu {
namespace {

using support::Segments;
using support::Tensor;

constexpr const char* kNotBuilt = "this build has no cuDNN";

bool has_gpu() {
  try {
    Stream stream(support::device());
    return stream.on(DeviceKind::kGpu);
  } catch (const Error&) {
    return false;
  }
}

AttentionPlanShape shape_of(int64_t segments, int64_t window) {
  return {.tokens = 1000,
          .segments = segments,
          .heads = 8,
          .kv_heads = 2,
          .row_heads = 16,
          .row_kv_heads = 4,
          .d = 128,
          .window = window};
}

TEST(AttentionCudnn, IsAbsentWithoutTheLibrary) {
  if (cudnn_is_built()) GTEST_SKIP() << "this build has cuDNN";
  EXPECT_EQ(make_cudnn_attention_plan(shape_of(1, 0), 1 << 20), nullptr);
  EXPECT_EQ(describe_cudnn_attention(shape_of(1, 0)), 0);
}

TEST(AttentionCudnn, DescribesEveryOperationWithoutADevice) {
  if (!cudnn_is_built()) GTEST_SKIP() << kNotBuilt;
  // 2 products, the scale, 7 of softmax; 4 for the order, 6 for segments' ends, 5 for a window.
  EXPECT_EQ(describe_cudnn_attention(shape_of(1, 0)), 14);
  EXPECT_EQ(describe_cudnn_attention(shape_of(1, 100)), 19);
  EXPECT_EQ(describe_cudnn_attention(shape_of(4, 0)), 20);
  EXPECT_EQ(describe_cudnn_attention(shape_of(4, 100)), 25);
}

TEST(AttentionCudnn, NamesTheCallThatFails) {
  if (!cudnn_is_built()) GTEST_SKIP() << kNotBuilt;
  if (has_gpu()) GTEST_SKIP() << "needs a machine without a GPU";
  try {
    make_cudnn_attention_plan(shape_of(1, 0), 1 << 20);
    FAIL() << "nothing was thrown";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("create_handle(&raw_) failed: CUDNN_STATUS_NOT_INIT"),
              std::string::npos)
        << e.what();
  }
}

struct Case {
  std::vector<int64_t> lengths;
  int64_t heads;
  int64_t kv_heads;
  int64_t d;
  int64_t window;
  std::vector<int32_t> groups = {};  // empty: all
};

/// What CheckedAttention finds on the first call, and on a second one with other segments.
void expect_agreement(const Case& c) {
  const Segments segments(c.lengths, 64);
  const int64_t tokens = segments.tokens();
  const auto random = [&](int64_t heads, uint64_t seed) {
    return support::random_tensor(DType::kBF16, {tokens, heads, c.d}, seed);
  };
  const Tensor q = random(c.heads, 1);
  const Tensor k = random(c.kv_heads, 2);
  const Tensor v = random(c.kv_heads, 3);
  const Tensor o(DType::kBF16, q.shape());
  const Tensor lse(DType::kF32, {c.heads, tokens});
  std::vector<int32_t> groups = c.groups;
  if (groups.empty()) {
    groups.resize(static_cast<size_t>(c.kv_heads));
    std::iota(groups.begin(), groups.end(), 0);
  }
  const AttentionForward a{.o = o,
                           .lse = lse,
                           .q = q,
                           .k = k,
                           .v = v,
                           .grid = segments.grid(),
                           .groups = groups,
                           .window = c.window,
                           .sink_tokens = 0,
                           .scale = 1 / std::sqrt(static_cast<float>(c.d))};
  if constexpr (kCudaBuilt) {
    CheckedAttention attention(make_cudnn_attention_plan);
    Stream stream(support::device());
    const std::string which = concat(tokens, " tokens in ", c.lengths.size(), " segments, ",
                                     c.heads, " heads of ", c.d, ", window ", c.window);
    EXPECT_TRUE(attention.forward(stream, a)) << which;
    const CheckedAttention::Verdict* verdict = attention.verdict(stream, a);
    ASSERT_NE(verdict, nullptr) << which << ": no plan, or no run; the log says why";
    EXPECT_LE(verdict->o_error, CheckedAttention::kMostOutputError) << which;
    EXPECT_LE(verdict->lse_error, CheckedAttention::kMostLseError) << which;
    EXPECT_EQ(verdict->repeat_error, 0) << which;
    EXPECT_TRUE(attention.forward(stream, a)) << which;
    stream.synchronize();
  }
}

TEST(AttentionCudnn, AgreesWithOurKernel) {
  if (!cudnn_is_built()) GTEST_SKIP() << kNotBuilt;
  if (!has_gpu()) GTEST_SKIP() << "needs a GPU";
  constexpr int64_t kAll = int64_t{1} << 40;
  for (const Case& c :
       {Case{{1024}, 8, 2, 128, kAll}, Case{{1000}, 4, 4, 64, kAll}, Case{{1000}, 8, 1, 128, 100},
        Case{{776}, 6, 2, 40, 33}, Case{{128}, 2, 1, 8, kAll},
        Case{{1024}, 8, 4, 128, kAll, {1, 2}}, Case{{300, 0, 700, 24}, 8, 2, 128, kAll},
        Case{{1, 129, 500, 128, 0, 77, 0}, 4, 2, 64, 50}, Case{{300, 200}, 8, 4, 128, 128, {3}},
        Case{{4096}, 16, 4, 128, 1024}}) {
    expect_agreement(c);
  }
}

}  // namespace
}  // namespace tessera::gpu
