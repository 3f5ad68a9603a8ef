// Processor time of the gate of one global KV group, beside the attention that it serves.
// Usage: gate_bench [threads] [gate keys per block]. No pass, no fail.
// One sequence, 64-token blocks, 4 heads of 128 in bf16, gate dimension 64, the default budget.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <vector>

#include "kernels/block_selection.h"
#include "kernels/gate_backward.h"
#include "kernels/gate_loss.h"
#include "kernels/gate_pool.h"
#include "kernels/sparse_attention.h"
#include "tests/support/random_tensor.h"
#include "tests/support/segments.h"

namespace tessera {
namespace {

using support::random_tensor;
using support::Tensor;

constexpr int64_t kBlock = 64;
constexpr int64_t kHeads = 4;
constexpr int64_t kDim = 128;
constexpr int64_t kGateDim = 64;

/// Milliseconds of processor time, all threads together, of the cheapest of a few calls after the
/// first: unlike the time on the clock, it does not count what other programs do meanwhile.
double milliseconds(const std::function<void()>& call) {
  call();
  double best = 1e30;
  double total = 0;
  for (int repeat = 0; repeat < 2 || (total < 200 && repeat < 30); ++repeat) {
    const std::clock_t start = std::clock();
    call();
    const double taken = 1e3 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    best = std::min(best, taken);
    total += taken;
  }
  return best;
}

int64_t kept_blocks(int64_t tokens) {
  return 4 * static_cast<int64_t>(std::ceil(std::log2(static_cast<double>(tokens) / 64)));
}

/// All tensors of the group.
struct Group {
  Group(int64_t n, int64_t keys_per_block)
      : tokens(n),
        gate_keys(keys_per_block),
        rule{.sink_blocks = 1, .window_blocks = 2, .kept = kept_blocks(n)},
        segments({n}, kBlock) {
    selection = {.blocks = i32({1, n, rule.kept + 1}),
                 .scores = f32({1, n, rule.kept + 1}),
                 .counts = i32({1, n})};
    const int64_t capacity = block_list_capacity(n, kBlock, rule);
    lists = {.tile_offsets = i32({1, grid().max_tiles() + 1}),
             .tile_blocks = i32({1, capacity}),
             .tile_masks = make(DType::kU16, {1, capacity}),
             .block_offsets = i32({1, grid().max_blocks() + 1}),
             .block_tiles = i32({1, capacity}),
             .block_masks = make(DType::kU16, {1, capacity})};
  }

  const SegmentGrid& grid() const { return segments.grid(); }
  int64_t keys() const { return grid().max_blocks() * gate_keys; }
  TensorView make(DType dtype, const Shape& shape) {
    memory.emplace_back(dtype, shape);
    return memory.back().view();
  }
  TensorView f32(const Shape& shape) { return make(DType::kF32, shape); }
  TensorView i32(const Shape& shape) { return make(DType::kI32, shape); }
  TensorView random(DType dtype, const Shape& shape) {
    memory.push_back(random_tensor(dtype, shape, memory.size()));
    return memory.back().view();
  }

  int64_t tokens;
  int64_t gate_keys;
  BlockRule rule;
  support::Segments segments;
  std::vector<Tensor> memory;
  BlockSelection selection;
  BlockLists lists;
};

struct Line {
  const char* name;
  double ms;
};

/// Attention forward and backward, for comparison.
std::vector<Line> attend(Stream& stream, Group& g, TensorView block_lse, TensorView dlog_gate) {
  const Shape queries{g.tokens, kHeads, kDim};
  const Shape keys{g.tokens, 1, kDim};
  const TensorView q = g.random(DType::kBF16, queries);
  const TensorView k = g.random(DType::kBF16, keys);
  const TensorView v = g.random(DType::kBF16, keys);
  const TensorView o = g.make(DType::kBF16, queries);
  const TensorView lse = g.f32({kHeads, g.tokens});
  const std::vector<int32_t> groups{0};
  const Tensor widths = support::filled(DType::kF32, {1}, 1);
  const GateRamp ramp{.strength = 0.9f, .widths = widths.view()};
  const float scale = 1 / std::sqrt(static_cast<float>(kDim));
  const double forward = milliseconds([&] {
    sparse_attention_forward(stream, {.o = o,
                                      .lse = lse,
                                      .q = q,
                                      .k = k,
                                      .v = v,
                                      .grid = g.grid(),
                                      .groups = groups,
                                      .rule = g.rule,
                                      .selection = g.selection,
                                      .lists = g.lists,
                                      .ramp = ramp,
                                      .scale = scale,
                                      .block_lse = block_lse});
  });
  const TensorView dq = g.make(DType::kBF16, queries);
  const TensorView dk = g.make(DType::kBF16, keys);
  const TensorView dv = g.make(DType::kBF16, keys);
  const TensorView delta = g.f32({kHeads, g.tokens});
  const double backward = milliseconds([&] {
    sparse_attention_backward(stream, {.dq = dq,
                                       .dk = dk,
                                       .dv = dv,
                                       .dlog_gate = dlog_gate,
                                       .delta = delta,
                                       .d_o = q,
                                       .o = o,
                                       .lse = lse,
                                       .q = q,
                                       .k = k,
                                       .v = v,
                                       .grid = g.grid(),
                                       .groups = groups,
                                       .rule = g.rule,
                                       .selection = g.selection,
                                       .lists = g.lists,
                                       .ramp = ramp,
                                       .scale = scale});
  });
  return {{"attention", forward}, {"attention backward", backward}};
}

std::vector<Line> forward(Stream& stream, Group& g, TensorView qt, TensorView kt) {
  const TensorView k0 = g.random(DType::kBF16, {1, g.tokens, kDim});
  const TensorView kbar = g.make(DType::kBF16, {1, g.keys(), kDim});
  const TensorView alpha = g.f32({1, g.tokens});
  const TensorView r = g.random(DType::kF32, {1, kDim});
  const TensorView dkbar = g.random(DType::kF32, {1, g.keys(), kDim});
  const TensorView dk0 = g.f32({1, g.tokens, kDim});
  const TensorView dr = g.f32({1, kDim});
  const SegmentGrid& grid = g.grid();
  return {{"pool", milliseconds([&] {
             gate_pool_forward(stream, {kbar, alpha, k0, r, grid, g.gate_keys});
           })},
          {"pool backward", milliseconds([&] {
             gate_pool_backward(stream, {dk0, dr, dkbar, kbar, alpha, k0, r, grid, g.gate_keys});
           })},
          {"score and select", milliseconds([&] {
             score_select(stream, {g.selection, qt, kt, grid, g.rule, g.gate_keys});
           })},
          {"block lists", milliseconds([&] {
             build_block_lists(stream, {g.lists, g.selection, grid});
           })}};
}

std::vector<Line> backward(Stream& stream, Group& g, TensorView qt, TensorView kt,
                           TensorView block_lse, TensorView dlog_gate) {
  const TensorView dqt = g.f32(qt.shape());
  const TensorView dkt = g.f32(kt.shape());
  const TensorView dscores = g.f32(g.selection.scores.shape());
  const TensorView losses = g.f32({3});
  const TensorView dwidths = g.f32({1});
  const Tensor widths = support::filled(DType::kF32, {1}, 1);
  return {
      {"losses", milliseconds([&] {
         gate_loss(stream, {losses, dscores, g.selection, block_lse, 1e-3f, 1e-4f, 1e-5f});
       })},
      {"ramp backward", milliseconds([&] {
         ramp_backward(stream, {dscores,
                                dwidths,
                                dlog_gate,
                                g.selection,
                                {.strength = 0.9f, .widths = widths.view()}});
       })},
      {"score backward", milliseconds([&] {
         score_backward(stream, {dqt, dkt, dscores, g.selection, qt, kt, g.grid(), g.gate_keys});
       })}};
}

void measure(Stream& stream, int64_t tokens, int64_t gate_keys) {
  Group g(tokens, gate_keys);
  g.memory.reserve(64);
  const TensorView qt = g.random(DType::kF32, {1, tokens, kGateDim});
  const TensorView kt = g.random(DType::kF32, {1, g.keys(), kGateDim});
  std::vector<Line> lines = forward(stream, g, qt, kt);
  const TensorView block_lse = g.f32({1, tokens, kHeads, g.rule.kept});
  const TensorView dlog_gate = g.f32({1, tokens, g.rule.kept});
  const std::vector<Line> attention = attend(stream, g, block_lse, dlog_gate);
  for (const Line& line : backward(stream, g, qt, kt, block_lse, dlog_gate)) lines.push_back(line);
  const double whole = attention[0].ms + attention[1].ms;
  std::printf("%lld tokens, %lld blocks, k = %lld\n", static_cast<long long>(tokens),
              static_cast<long long>(g.grid().max_blocks()), static_cast<long long>(g.rule.kept));
  lines.insert(lines.end(), attention.begin(), attention.end());
  for (const Line& line : lines) {
    std::printf("  %-20s %9.3f ms  %6.2f %% of attention and its backward\n", line.name, line.ms,
                100 * line.ms / whole);
  }
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const int gate_keys = argc > 2 ? std::atoi(argv[2]) : 1;
  tessera::Stream stream(tessera::Device{}, std::max(1, threads));
  for (const int64_t tokens : {2048, 8192, 32768}) {
    tessera::measure(stream, tokens, std::max(1, gate_keys));
  }
}
