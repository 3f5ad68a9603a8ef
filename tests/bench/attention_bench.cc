#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <vector>

#include "kernels/attention.h"
#include "kernels/gate_backward.h"
#include "kernels/sparse_attention.h"
#include "tests/support/random_tensor.h"
#include "tests/support/segments.h"
#include "tests/support/selection.h"

// Prints what attention of one KV group of 4 heads costs on one thread, dense, within a window, and
// over chosen blocks, and from that what a layer of 8 groups costs: 8 dense ones against 1 global
// and 7 local ones. Usage: attention_bench [largest number of tokens]. No pass, no fail.

namespace tessera {
namespace {

using support::Segments;
using support::Selection;
using support::Tensor;

constexpr int64_t kHeads = 4;
constexpr int64_t kDim = 64;
constexpr int64_t kGateDim = 64;
constexpr int64_t kBlock = 64;
constexpr int64_t kGroupsOfLayer = 8;
constexpr float kScale = 0.125f;

/// Milliseconds of processor time: what other programs take from the machine is left out. The
/// fewest of several calls, or one if it is long.
double time_ms(const std::function<void()>& call) {
  double best = 1e30;
  double spent = 0;
  while (spent < 1000) {
    const std::clock_t start = std::clock();
    call();
    const double ms = 1e3 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    best = std::min(best, ms);
    spent += ms;
  }
  return best;
}

struct Times {
  double forward = 0;
  double backward = 0;
  double both() const { return forward + backward; }
};

/// q, k, v, their gradients and o of one group.
struct Group {
  explicit Group(int64_t n)
      : tokens(n),
        segments({n}, kBlock),
        q(support::random_tensor(DType::kBF16, {n, kHeads, kDim}, 1)),
        k(support::random_tensor(DType::kBF16, {n, 1, kDim}, 2)),
        v(support::random_tensor(DType::kBF16, {n, 1, kDim}, 3)),
        d_o(support::random_tensor(DType::kBF16, {n, kHeads, kDim}, 4)),
        o(DType::kBF16, q.shape()),
        dq(DType::kBF16, q.shape()),
        dk(DType::kBF16, k.shape()),
        dv(DType::kBF16, k.shape()),
        lse(DType::kF32, {kHeads, n}),
        delta(DType::kF32, {kHeads, n}) {}

  Times attend(int64_t window, int64_t sink_tokens) {
    const SegmentGrid& grid = segments.grid();
    Times times;
    times.forward = time_ms([&] {
      attention_forward(stream, {.o = o,
                                 .lse = lse,
                                 .q = q,
                                 .k = k,
                                 .v = v,
                                 .grid = grid,
                                 .groups = groups,
                                 .window = window,
                                 .sink_tokens = sink_tokens,
                                 .scale = kScale});
    });
    times.backward = time_ms([&] {
      attention_backward(stream, {.dq = dq,
                                  .dk = dk,
                                  .dv = dv,
                                  .delta = delta,
                                  .d_o = d_o,
                                  .o = o,
                                  .lse = lse,
                                  .q = q,
                                  .k = k,
                                  .v = v,
                                  .grid = grid,
                                  .groups = groups,
                                  .window = window,
                                  .sink_tokens = sink_tokens,
                                  .scale = kScale});
    });
    return times;
  }

  int64_t tokens;
  Segments segments;
  Tensor q, k, v, d_o, o, dq, dk, dv, lse, delta;
  std::vector<int32_t> groups{0};
  Stream stream{Device{}, 1};
};

/// Rows that drift, so that neighbours are alike, as hidden states are: each is `memory` times the
/// one before plus noise, of variance 1.
Tensor drifting(int64_t rows, uint64_t seed, double memory) {
  Tensor x = support::random_tensor(DType::kF32, {1, rows, kGateDim}, seed);
  const float noise = static_cast<float>(std::sqrt(1 - memory * memory));
  for (size_t i = kGateDim; i < x.as<float>().size(); ++i) {
    x.as<float>()[i] =
        static_cast<float>(memory) * x.as<float>()[i - kGateDim] + noise * x.as<float>()[i];
  }
  return x;
}

/// A global group: scoring and choosing belong to its forward, the gate to its backward.
class Global {
 public:
  Global(Group& group, int64_t window, double memory)
      : g_(group),
        rule_{1, window / kBlock, budget(group.tokens) / kBlock},
        owner_(1, group.tokens, rule_.kept),
        selection_(owner_.view()),
        qt_(drifting(group.tokens, 5, memory)),
        kt_(drifting(group.segments.grid().max_blocks(), 6, 0.5)) {}

  /// Tokens that may be chosen: dgsa 2.2 with c = 4.
  static int64_t budget(int64_t tokens) {
    const double levels = std::ceil(std::log2(static_cast<double>(tokens) / 64));
    return 64 * 4 * static_cast<int64_t>(levels);
  }
  int64_t kept() const { return rule_.kept; }
  /// Tokens of the tiles that read a block per token that chose it: 1 is no waste.
  double waste() const {
    int64_t chosen = 0;
    for (const int32_t count : selection_.counts.as<int32_t>()) chosen += count;
    const int64_t entries = lists_.tile_offsets.as<int32_t>().back();
    return static_cast<double>(entries * SegmentGrid::kTile) / static_cast<double>(chosen);
  }

  Times attend() {
    Times times;
    times.forward = time_ms([&] { forward(); });
    times.backward = time_ms([&] { backward(); });
    return times;
  }

 private:
  void forward() {
    const SegmentGrid& grid = g_.segments.grid();
    score_select(g_.stream, {.selection = selection_,
                             .qt = qt_,
                             .kt = kt_,
                             .grid = grid,
                             .rule = rule_,
                             .gate_keys = 1});
    build_block_lists(g_.stream, {lists_, selection_, grid});
    sparse_attention_forward(g_.stream, {.o = g_.o,
                                         .lse = g_.lse,
                                         .q = g_.q,
                                         .k = g_.k,
                                         .v = g_.v,
                                         .grid = grid,
                                         .groups = g_.groups,
                                         .rule = rule_,
                                         .selection = selection_,
                                         .lists = lists_,
                                         .ramp = ramp_,
                                         .scale = kScale,
                                         .block_lse = block_lse_});
  }
  void backward() {
    const SegmentGrid& grid = g_.segments.grid();
    sparse_attention_backward(g_.stream, {.dq = g_.dq,
                                          .dk = g_.dk,
                                          .dv = g_.dv,
                                          .dlog_gate = dlog_gate_,
                                          .delta = g_.delta,
                                          .d_o = g_.d_o,
                                          .o = g_.o,
                                          .lse = g_.lse,
                                          .q = g_.q,
                                          .k = g_.k,
                                          .v = g_.v,
                                          .grid = grid,
                                          .groups = g_.groups,
                                          .rule = rule_,
                                          .selection = selection_,
                                          .lists = lists_,
                                          .ramp = ramp_,
                                          .scale = kScale});
    ramp_backward(g_.stream, {.dscores = dscores_,
                              .dwidths = dwidths_,
                              .dlog_gate = dlog_gate_,
                              .selection = selection_,
                              .ramp = ramp_});
    score_backward(g_.stream, {.dqt = dqt_,
                               .dkt = dkt_,
                               .dscores = dscores_,
                               .selection = selection_,
                               .qt = qt_,
                               .kt = kt_,
                               .grid = grid,
                               .gate_keys = 1});
  }

  Group& g_;
  BlockRule rule_;
  Selection owner_;
  BlockSelection selection_;
  Tensor qt_, kt_;
  Tensor dqt_{DType::kF32, qt_.shape()};
  Tensor dkt_{DType::kF32, kt_.shape()};
  Tensor widths_ = support::filled(DType::kF32, {1}, 1);
  Tensor dwidths_{DType::kF32, {1}};
  Tensor dscores_{DType::kF32, {1, g_.tokens, rule_.kept + 1}};
  Tensor dlog_gate_{DType::kF32, {1, g_.tokens, rule_.kept}};
  Tensor block_lse_{DType::kF32, {1, g_.tokens, kHeads, rule_.kept}};
  int64_t capacity_ = block_list_capacity(g_.tokens, kBlock, rule_);
  Tensor tile_offsets_{DType::kI32, {1, g_.segments.grid().max_tiles() + 1}};
  Tensor block_offsets_{DType::kI32, {1, g_.segments.grid().max_blocks() + 1}};
  Tensor tile_blocks_{DType::kI32, {1, capacity_}};
  Tensor block_tiles_{DType::kI32, {1, capacity_}};
  Tensor tile_masks_{DType::kU16, {1, capacity_}};
  Tensor block_masks_{DType::kU16, {1, capacity_}};
  BlockLists lists_{tile_offsets_,  tile_blocks_, tile_masks_,
                    block_offsets_, block_tiles_, block_masks_};
  GateRamp ramp_{0.999f, widths_};
};

/// The exponent p of cost = c n^p by least squares in logarithms.
double exponent(const std::vector<double>& tokens, const std::vector<double>& cost) {
  double sum_x = 0, sum_y = 0, sum_xx = 0, sum_xy = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const double x = std::log(tokens[i]);
    const double y = std::log(cost[i]);
    sum_x += x;
    sum_y += y;
    sum_xx += x * x;
    sum_xy += x * y;
  }
  const auto n = static_cast<double>(tokens.size());
  return (n * sum_xy - sum_x * sum_y) / (n * sum_xx - sum_x * sum_x);
}

void print_row(int64_t tokens, const char* name, const Times& t) {
  std::printf("%7ld  %-34s %10.1f %10.1f %10.1f\n", static_cast<long>(tokens), name, t.forward,
              t.backward, t.both());
}

void run(int64_t largest) {
  constexpr int64_t kWindows[] = {256, 1024};
  std::printf("one KV group: %ld heads of %ld, bf16, one thread, ms of processor time\n",
              static_cast<long>(kHeads), static_cast<long>(kDim));
  std::printf("%7s  %-34s %10s %10s %10s\n", "tokens", "", "forward", "backward", "both");
  std::vector<double> lengths;
  std::vector<double> dense_cost;
  std::vector<double> cost[2];
  for (const int64_t tokens : {2048, 8192, 32768}) {
    if (tokens > largest) break;
    Group group(tokens);
    const Times dense = group.attend(tokens, 0);
    print_row(tokens, "dense", dense);
    lengths.push_back(static_cast<double>(tokens));
    dense_cost.push_back(kGroupsOfLayer * dense.both());
    for (size_t w = 0; w < 2; ++w) {
      const Times local = group.attend(kWindows[w], kBlock);
      print_row(tokens, concat("window ", kWindows[w], " + 64 first").c_str(), local);
      Times global;
      for (const double memory : {0.0, 0.95}) {
        Global chosen(group, kWindows[w], memory);
        global = chosen.attend();
        print_row(tokens,
                  concat("window ", kWindows[w], ", ", chosen.kept(), " chosen, waste ",
                         std::round(100 * chosen.waste()) / 100)
                      .c_str(),
                  global);
      }
      cost[w].push_back(global.both() + (kGroupsOfLayer - 1) * local.both());
    }
  }
  std::printf("\na layer: 8 groups, forward + backward, ms; chosen by drifting queries\n");
  std::printf("%7s %12s %16s %7s %16s %7s\n", "tokens", "dense", "DGSA, W 256", "ratio",
              "DGSA, W 1024", "ratio");
  for (size_t i = 0; i < lengths.size(); ++i) {
    std::printf("%7.0f %12.1f %16.1f %7.2f %16.1f %7.2f\n", lengths[i], dense_cost[i], cost[0][i],
                dense_cost[i] / cost[0][i], cost[1][i], dense_cost[i] / cost[1][i]);
  }
  if (lengths.size() < 2) return;
  std::printf("%7s %12.2f %16.2f %7s %16.2f   exponents of cost in n\n", "",
              exponent(lengths, dense_cost), exponent(lengths, cost[0]), "",
              exponent(lengths, cost[1]));
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  tessera::run(argc > 1 ? std::atol(argv[1]) : 32768);
  return 0;
}
