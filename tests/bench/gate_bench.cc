// Processor time of the gate of one global KV group, beside the attention that it serves.
// Usage: gate_bench [threads] [gate keys per block], or
//        gate_bench [threads] 1 [thousands of tokens]: the choice through a tree beside the flat
//        one.
// No pass, no fail.
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
#include "kernels/gate_measure.h"
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

/// 64 rows, evenly, with their positions.
std::vector<int32_t> sampled_rows(int64_t tokens) {
  std::vector<int32_t> rows;
  for (int64_t i = 0; i < 64; ++i) {
    rows.push_back(static_cast<int32_t>((2 * i + 1) * tokens / 128));
    rows.push_back(rows.back());
  }
  return rows;
}

/// What is measured of an attention in some steps.
std::vector<Line> look(Stream& stream, Group& g, MeasureGateRows rows) {
  const std::vector<int32_t> sampled = sampled_rows(g.tokens);
  const Tensor samples = support::from_ints(sampled);
  const TensorView figures = g.f32({1, GateFigures::kSize});
  const TensorView counts = g.f32({1, g.grid().max_blocks(), 2});
  rows.figures = figures;
  rows.map = g.f32({1, kMapBins, kMapBins + 1});
  rows.samples = samples.view().reshape({64, 2});
  return {{"measure 64 rows", milliseconds([&] { measure_gate_rows(stream, rows); })},
          {"measure lists", milliseconds([&] {
             measure_gate_lists(stream, {figures, counts, g.lists, g.grid(), g.rule});
             measure_gate_blocks(stream, {figures, counts});
           })}};
}

/// Attention forward and backward, for comparison, and what is measured of them.
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
  std::vector<Line> lines{{"attention", forward}, {"attention backward", backward}};
  const MeasureGateRows rows{.figures = {},
                             .map = {},
                             .samples = {},
                             .sequence_length = g.tokens,
                             .q = q,
                             .k = k,
                             .lse = lse,
                             .grid = g.grid(),
                             .groups = groups,
                             .rule = g.rule,
                             .scale = scale,
                             .selection = g.selection,
                             .block_lse = block_lse,
                             .ramp = ramp};
  for (const Line& line : look(stream, g, rows)) lines.push_back(line);
  return lines;
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

/// Keys of which 16 neighbours have a part in common, and queries that look for one of them each:
/// the data of property 9b. `similar`: neighbouring tokens look for the same one.
void correlate(Group& g, TensorView qt, TensorView kt, bool similar) {
  const auto queries = qt.as<float>();
  const auto keys = kt.as<float>();
  const auto dim = static_cast<size_t>(kGateDim);
  const Tensor parts = random_tensor(DType::kF32, {g.keys() / 16 + 1, kGateDim}, 91, 0.7);
  for (size_t i = 0; i < keys.size(); ++i) {
    keys[i] = 0.7f * keys[i] + parts.as<float>()[i / dim / 16 * dim + i % dim];
  }
  for (size_t token = 0; token < static_cast<size_t>(g.tokens); ++token) {
    const uint64_t subject = similar ? token / 64 : token;
    const size_t wanted = philox(92, 0, subject)[0] % (token / kBlock + 1);
    for (size_t d = 0; d < dim; ++d) {
      queries[token * dim + d] += 0.75f * keys[wanted * dim + d];
    }
  }
}

/// The share of flat's choices that the tree made too, of the last token of every 16th block.
double recall(const BlockSelection& flat, const BlockSelection& tree) {
  const int64_t slots = flat.kept() + 1;
  const auto of_flat = flat.blocks.as<int32_t>();
  const auto of_tree = tree.blocks.as<int32_t>();
  double found = 0;
  double all = 0;
  for (int64_t token = 1023; token < flat.counts.elements(); token += 1024) {
    const auto row = [&](std::span<const int32_t> blocks) {
      return blocks.subspan(static_cast<size_t>(token * slots), static_cast<size_t>(slots - 1));
    };
    for (const int32_t block : row(of_flat)) {
      if (block < 0) continue;
      all += 1;
      found += std::ranges::count(row(of_tree), block) > 0;
    }
  }
  return found / all;
}

void measure_tree(Stream& stream, int64_t tokens, bool similar) {
  Group g(tokens, 1);
  g.memory.reserve(64);
  const TensorView qt = g.random(DType::kF32, {1, tokens, kGateDim});
  const TensorView kt = g.random(DType::kF32, {1, g.keys(), kGateDim});
  correlate(g, qt, kt, similar);
  const TensorView nodes = g.f32({1, tree_rows(g.grid().max_blocks()), kGateDim});
  BlockSelection of_tree = g.selection;
  of_tree.blocks = g.i32(of_tree.blocks.shape());
  of_tree.scores = g.f32(of_tree.scores.shape());
  of_tree.counts = g.i32(of_tree.counts.shape());
  const double flat = milliseconds([&] {
    score_select(stream, {g.selection, qt, kt, g.grid(), g.rule, 1});
  });
  std::printf("%lld tokens, k = %lld, %s queries: flat %.1f ms\n", static_cast<long long>(tokens),
              static_cast<long long>(g.rule.kept), similar ? "similar" : "unrelated", flat);
  for (const int64_t radix : {4, 8, 16}) {
    for (const int64_t beam : {1, 64, 128}) {
      const TreeSearch tree{.radix = radix, .beam = beam};
      const double ms = milliseconds([&] {
        score_select(stream, {of_tree, qt, kt, g.grid(), g.rule, 1, tree, nodes});
      });
      std::printf("  radix %2lld, beam %3lld: %9.1f ms, %5.2f times as fast, recall %.3f\n",
                  static_cast<long long>(radix), static_cast<long long>(tree.width(g.rule.kept)),
                  ms, flat / ms, recall(g.selection, of_tree));
    }
  }
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const int gate_keys = argc > 2 ? std::atoi(argv[2]) : 1;
  tessera::Stream stream(tessera::Device{}, std::max(1, threads));
  if (argc > 3) {
    const int64_t tokens = 1024 * std::atoll(argv[3]);
    for (const bool similar : {false, true}) tessera::measure_tree(stream, tokens, similar);
    return 0;
  }
  for (const int64_t tokens : {2048, 8192, 32768}) {
    tessera::measure(stream, tokens, std::max(1, gate_keys));
  }
}
