#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>

#include "kernels/attention.h"
#include "kernels/attention_backward_sm90.h"
#include "kernels/attention_forward_sm90.h"
#include "kernels/core/build.h"
#include "kernels/core/copy.h"
#include "kernels/gate_backward.h"
#include "kernels/gate_loss.h"
#include "kernels/gate_pool.h"
#include "kernels/sparse_attention.h"
#include "tests/bench/gpu_bench.h"

// Attention of one layer of 32 heads in 8 KV groups, d 128, bf16, one sequence: dense; and DGSA at
// its target sparsity, one group global and seven local with a window of 1024. A sum over the layer
// includes all that sparsity costs: pooling of keys, scores, choice, lists, the losses of the gate
// and its backward; not the projections of gate queries and keys. One line of JSON each.

namespace tessera {
namespace {

constexpr DType kType = DType::kBF16;
constexpr int64_t kBlock = 64;
constexpr int64_t kGateDim = 64;

/// The layer; smaller in a run of tiny shapes.
struct Sizes {
  explicit Sizes(const GpuBench& bench, int64_t n)
      : tokens(n),
        heads(bench.size(32, 4)),
        groups(bench.size(8, 2)),
        d(bench.size(128, 16)),
        window(bench.size(1024, 2 * kBlock)),
        scale(1 / std::sqrt(static_cast<float>(d))) {}

  /// 4 blocks for each doubling of the sequence.
  BlockRule rule() const {
    const auto blocks = static_cast<uint64_t>((tokens + kBlock - 1) / kBlock);
    return {.sink_blocks = 1,
            .window_blocks = window / kBlock,
            .kept = 4 * static_cast<int64_t>(std::bit_width(blocks - 1))};
  }
  /// Of two products of `pairs` (query, key) in `of_groups` groups.
  double flops(double pairs, int64_t of_groups) const {
    return 4 * pairs * static_cast<double>(d * of_groups * heads / groups);
  }

  int64_t tokens, heads, groups, d, window;
  float scale;
};

double dense_pairs(int64_t n) {
  return 0.5 * static_cast<double>(n) * static_cast<double>(n + 1);
}
double window_pairs(const Sizes& s) {
  double pairs = 0;
  for (int64_t i = 0; i < s.tokens; ++i) {
    const int64_t near = std::min(i + 1, s.window);
    pairs += static_cast<double>(near + std::min(kBlock, i + 1 - near));
  }
  return pairs;
}
double chosen_pairs(const Sizes& s) {
  const BlockRule rule = s.rule();
  double pairs = 0;
  for (int64_t i = 0; i < s.tokens; ++i) {
    const int64_t candidates = rule.candidates(i / kBlock);
    const int64_t dropped = std::max(candidates - rule.kept, int64_t{0});
    pairs += static_cast<double>(i + 1 - dropped * kBlock);
  }
  return pairs;
}

/// Queries, keys, values and gradients of all heads.
class Layer {
 public:
  Layer(GpuBench& bench, const Sizes& sizes)
      : bench_(bench),
        s_(sizes),
        tensors_(bench),
        q(tensors_.random(kType, {s_.tokens, s_.heads, s_.d})),
        k(tensors_.random(kType, {s_.tokens, s_.groups, s_.d})),
        v(tensors_.random(kType, k.shape())),
        d_o(tensors_.random(kType, q.shape())),
        o(tensors_.zeros(kType, q.shape())),
        dq(tensors_.zeros(kType, q.shape())),
        dk(tensors_.zeros(kType, k.shape())),
        dv(tensors_.zeros(kType, k.shape())),
        lse(tensors_.zeros(DType::kF32, {s_.heads, s_.tokens})),
        delta(tensors_.zeros(DType::kF32, lse.shape())),
        grid(build_segment_grid(
            bench.stream(),
            {.positions = tensors_.zeros(DType::kI32, {s_.tokens}),
             .tile_starts = tensors_.zeros(DType::kI32, {2}),
             .block_starts = tensors_.zeros(DType::kI32, {2}),
             .starts = tensors_.from<int32_t>({2}, {0, static_cast<int32_t>(s_.tokens)}),
             .block = kBlock})) {
    for (int32_t g = 0; g < s_.groups; ++g) (g == 0 ? global : local).push_back(g);
    all = global;
    all.insert(all.end(), local.begin(), local.end());
  }

  AttentionForward forward_arguments(std::span<const int32_t> groups, int64_t window,
                                     int64_t sinks) const {
    return {.o = o,
            .lse = lse,
            .q = q,
            .k = k,
            .v = v,
            .grid = grid,
            .groups = groups,
            .window = window,
            .sink_tokens = sinks,
            .scale = s_.scale};
  }
  void forward(std::span<const int32_t> groups, int64_t window, int64_t sinks) {
    attention_forward(bench_.stream(), forward_arguments(groups, window, sinks));
  }
  AttentionBackward backward_arguments(std::span<const int32_t> groups, int64_t window,
                                       int64_t sinks) const {
    return {.dq = dq,
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
            .sink_tokens = sinks,
            .scale = s_.scale};
  }
  void backward(std::span<const int32_t> groups, int64_t window, int64_t sinks) {
    attention_backward(bench_.stream(), backward_arguments(groups, window, sinks));
  }
  void local_forward() { forward(local, s_.window, kBlock); }
  void local_backward() { backward(local, s_.window, kBlock); }

 private:
  GpuBench& bench_;
  Sizes s_;
  GpuTensors tensors_;

 public:
  TensorView q, k, v, d_o, o, dq, dk, dv, lse, delta;
  SegmentGrid grid;
  std::vector<int32_t> all, global, local;
};

/// Rows that drift, so that neighbours are alike, as hidden states are: each is `memory` times the
/// one before plus noise, of variance 1.
std::vector<float> drifting(GpuBench& bench, int64_t rows, double memory) {
  if (bench.options().dry_run) return std::vector<float>(static_cast<size_t>(rows * kGateDim));
  const std::vector<float>& normals = bench.normals();
  std::vector<float> x(static_cast<size_t>(rows * kGateDim));
  const auto kept = static_cast<float>(memory);
  const auto noise = static_cast<float>(std::sqrt(1 - memory * memory));
  for (size_t i = 0; i < x.size(); ++i) {
    const float fresh = normals[(i + 77777) % normals.size()];
    x[i] = i < kGateDim ? fresh : kept * x[i - kGateDim] + noise * fresh;
  }
  return x;
}

/// The gate of the global group and its sparse attention.
class Global {
 public:
  Global(GpuBench& bench, Layer& layer, const Sizes& sizes, double memory)
      : bench_(bench),
        layer_(layer),
        s_(sizes),
        rule_(sizes.rule()),
        t_(bench),
        qt_(t_.from({1, s_.tokens, kGateDim}, drifting(bench, s_.tokens, memory))) {}

  void pool() { gate_pool_forward(bench_.stream(), {kbar_, alpha_, k0_, r_, layer_.grid, 1}); }
  void select() {
    score_select(bench_.stream(), {.selection = selection_,
                                   .qt = qt_,
                                   .kt = kt_,
                                   .grid = layer_.grid,
                                   .rule = rule_,
                                   .gate_keys = 1});
  }
  void list() { build_block_lists(bench_.stream(), {lists_, selection_, layer_.grid}); }
  SparseAttentionForward arguments() const {
    return {.o = layer_.o,
            .lse = layer_.lse,
            .q = layer_.q,
            .k = layer_.k,
            .v = layer_.v,
            .grid = layer_.grid,
            .groups = layer_.global,
            .rule = rule_,
            .selection = selection_,
            .lists = lists_,
            .ramp = ramp_,
            .scale = s_.scale,
            .block_lse = block_lse_};
  }
  void attend() { sparse_attention_forward(bench_.stream(), arguments()); }
  void attend_backward() {
    sparse_attention_backward(bench_.stream(), {.dq = layer_.dq,
                                                .dk = layer_.dk,
                                                .dv = layer_.dv,
                                                .dlog_gate = dlog_gate_,
                                                .delta = layer_.delta,
                                                .d_o = layer_.d_o,
                                                .o = layer_.o,
                                                .lse = layer_.lse,
                                                .q = layer_.q,
                                                .k = layer_.k,
                                                .v = layer_.v,
                                                .grid = layer_.grid,
                                                .groups = layer_.global,
                                                .rule = rule_,
                                                .selection = selection_,
                                                .lists = lists_,
                                                .ramp = ramp_,
                                                .scale = s_.scale});
  }
  void losses() {
    gate_loss(bench_.stream(), {losses_, dscores_, selection_, block_lse_, 1e-3f, 1e-4f, 1e-5f});
  }
  void ramp() {
    ramp_backward(bench_.stream(), {dscores_, dwidths_, dlog_gate_, selection_, ramp_});
  }
  void score() {
    score_backward(bench_.stream(), {dqt_, dkt_, dscores_, selection_, qt_, kt_, layer_.grid, 1});
  }
  void pool_backward() {
    gate_pool_backward(bench_.stream(),
                       {dk0_, dr_, dkbar_, kbar_, alpha_, k0_, r_, layer_.grid, 1});
  }

  /// Tokens of the tiles that read a block, per token that chose it: 1 is no waste.
  std::string waste() {
    if (bench_.options().dry_run) return "";
    int64_t chosen = 0;
    for (const int32_t count : to_vector<int32_t>(bench_.stream(), selection_.counts)) {
      chosen += count;
    }
    const int32_t entries = to_vector<int32_t>(bench_.stream(), lists_.tile_offsets).back();
    char text[64];
    std::snprintf(text, sizeof(text), "waste %.2f",
                  static_cast<double>(entries) * SegmentGrid::kTile / static_cast<double>(chosen));
    return text;
  }

 private:
  TensorView f32(Shape shape) { return t_.zeros(DType::kF32, shape); }
  TensorView i32(Shape shape) { return t_.zeros(DType::kI32, shape); }
  TensorView u16(Shape shape) { return t_.zeros(DType::kU16, shape); }

  GpuBench& bench_;
  Layer& layer_;
  Sizes s_;
  BlockRule rule_;
  GpuTensors t_;
  int64_t n_ = s_.tokens;
  int64_t blocks_ = layer_.grid.max_blocks();
  int64_t capacity_ = block_list_capacity(n_, kBlock, rule_);
  TensorView qt_;
  TensorView kt_ = t_.random(DType::kF32, {1, blocks_, kGateDim});
  TensorView k0_ = t_.random(kType, {1, n_, s_.d});
  TensorView r_ = t_.random(DType::kF32, {1, s_.d}, 0.1);
  TensorView kbar_ = t_.zeros(kType, {1, blocks_, s_.d});
  TensorView alpha_ = f32({1, n_});
  TensorView dkbar_ = t_.random(DType::kF32, {1, blocks_, s_.d});
  TensorView dk0_ = f32({1, n_, s_.d});
  TensorView dr_ = f32({1, s_.d});
  BlockSelection selection_{i32({1, n_, rule_.kept + 1}), f32({1, n_, rule_.kept + 1}),
                            i32({1, n_})};
  BlockLists lists_{i32({1, layer_.grid.max_tiles() + 1}),
                    i32({1, capacity_}),
                    u16({1, capacity_}),
                    i32({1, blocks_ + 1}),
                    i32({1, capacity_}),
                    u16({1, capacity_})};
  GateRamp ramp_{0.999f, t_.from<float>({1}, {1.0f})};
  TensorView block_lse_ = f32({1, n_, s_.heads / s_.groups, rule_.kept});
  TensorView dlog_gate_ = f32({1, n_, rule_.kept});
  TensorView dscores_ = f32({1, n_, rule_.kept + 1});
  TensorView dwidths_ = f32({1});
  TensorView losses_ = f32({3});
  TensorView dqt_ = f32({1, n_, kGateDim});
  TensorView dkt_ = f32({1, blocks_, kGateDim});
};

using Part = std::pair<const char*, std::function<void()>>;

/// Measures the parts and then all of them together, or says that one part is missing.
void measure_together(GpuBench& bench, const GpuWork& whole, const std::vector<Part>& parts) {
  bool complete = true;
  for (const auto& [name, call] : parts) {
    complete &= bench.run({.name = name,
                           .shape = whole.shape,
                           .dtype = kType,
                           .call = call,
                           .note = whole.note}) >= 0;
  }
  if (!complete) return bench.print_failure(whole.name, whole.shape, "a part of it failed");
  GpuWork together = whole;
  together.call = [&] {
    for (const auto& part : parts) part.second();
  };
  bench.run(together);
}

/// Beside a row of what Hopper's kernel computes, one of the kernel for all GPUs. `whole` has no
/// call yet.
template <class Arguments>
void measure_for_all(GpuBench& bench, GpuWork whole, const Arguments& arguments) {
  if constexpr (kCudaBuilt) {
    Stream& stream = bench.stream();
    if (!stream.on(DeviceKind::kGpu) || !gpu::sm90_takes(stream, arguments)) return;
    whole.name += "_sm80";
    whole.call = [&] { gpu::attention_forward_sm80(stream, arguments); };
    bench.run(whole);
  }
}
/// And of a call that a library takes, one of Hopper's kernel.
void measure_sm90(GpuBench& bench, GpuWork whole, const AttentionForward& arguments) {
  if constexpr (kCudaBuilt) {
    Stream& stream = bench.stream();
    if (!stream.on(DeviceKind::kGpu) || !gpu::sm90_takes(stream, arguments)) return;
    whole.name += "_sm90";
    whole.call = [&] { gpu::attention_forward_sm90(stream, arguments); };
    bench.run(whole);
  }
}

/// Beside a row of backward, one of the kernels for all GPUs.
void measure_for_all(GpuBench& bench, GpuWork whole, const AttentionBackward& arguments) {
  if constexpr (kCudaBuilt) {
    Stream& stream = bench.stream();
    if (!stream.on(DeviceKind::kGpu) || !gpu::sm90_takes(stream, arguments)) return;
    whole.name += "_sm80";
    whole.call = [&] { gpu::attention_backward_sm80(stream, arguments); };
    bench.run(whole);
  }
}

void dense(GpuBench& bench, int64_t n) {
  const Sizes s(bench, n);
  Layer layer(bench, s);
  const std::string shape = thousands(n) + " tokens";
  const double flops = s.flops(dense_pairs(n), s.groups);
  bench.run(
      {.name = "attention_forward", .shape = shape, .dtype = kType, .flops = flops, .call = [&] {
         layer.forward(layer.all, n, 0);
       }});
  measure_sm90(
      bench,
      {.name = "attention_forward", .shape = shape, .dtype = kType, .flops = flops, .call = {}},
      layer.forward_arguments(layer.all, n, 0));
  bench.run({.name = "attention_backward",
             .shape = shape,
             .dtype = kType,
             .flops = 2.5 * flops,
             .call = [&] { layer.backward(layer.all, n, 0); },
             .note = "flops of five products"});
}

void window(GpuBench& bench, int64_t n) {
  const Sizes s(bench, n);
  Layer layer(bench, s);
  const std::string shape = concat(thousands(n), " tokens, ", layer.local.size(), " groups");
  const double flops = s.flops(window_pairs(s), std::ssize(layer.local));
  bench.run({.name = "window_forward", .shape = shape, .dtype = kType, .flops = flops, .call = [&] {
               layer.local_forward();
             }});
  measure_for_all(
      bench, {.name = "window_forward", .shape = shape, .dtype = kType, .flops = flops, .call = {}},
      layer.forward_arguments(layer.local, s.window, kBlock));
  bench.run({.name = "window_backward",
             .shape = shape,
             .dtype = kType,
             .flops = 2.5 * flops,
             .call = [&] { layer.local_backward(); }});
  measure_for_all(
      bench,
      {.name = "window_backward", .shape = shape, .dtype = kType, .flops = 2.5 * flops, .call = {}},
      layer.backward_arguments(layer.local, s.window, kBlock));
}

void dgsa(GpuBench& bench, int64_t n, double memory) {
  const Sizes s(bench, n);
  Layer layer(bench, s);
  Global global(bench, layer, s, memory);
  const std::string shape =
      thousands(n) + (memory > 0 ? " tokens" : " tokens, independent queries");
  const double flops =
      s.flops(window_pairs(s), std::ssize(layer.local)) + s.flops(chosen_pairs(s), 1);
  global.select();
  global.list();
  const std::string waste = global.waste();
  const std::vector<Part> forward{{"gate_pool_forward", [&] { global.pool(); }},
                                  {"score_select", [&] { global.select(); }},
                                  {"build_block_lists", [&] { global.list(); }},
                                  {"sparse_attention_forward", [&] { global.attend(); }},
                                  {"dgsa_window_forward", [&] { layer.local_forward(); }}};
  const std::vector<Part> backward{{"sparse_attention_backward", [&] { global.attend_backward(); }},
                                   {"gate_loss", [&] { global.losses(); }},
                                   {"ramp_backward", [&] { global.ramp(); }},
                                   {"score_backward", [&] { global.score(); }},
                                   {"gate_pool_backward", [&] { global.pool_backward(); }},
                                   {"dgsa_window_backward", [&] { layer.local_backward(); }}};
  measure_together(bench,
                   {.name = "dgsa_layer_forward",
                    .shape = shape,
                    .dtype = kType,
                    .flops = flops,
                    .call = {},
                    .note = waste},
                   forward);
  measure_for_all(bench,
                  {.name = "sparse_attention_forward",
                   .shape = shape,
                   .dtype = kType,
                   .call = {},
                   .note = waste},
                  global.arguments());
  measure_together(bench,
                   {.name = "dgsa_layer_backward",
                    .shape = shape,
                    .dtype = kType,
                    .flops = 2.5 * flops,
                    .call = {},
                    .note = waste},
                   backward);
}

std::vector<int64_t> lengths(const GpuBench& bench) {
  if (bench.options().tiny) return {330};
  if (bench.options().quick) return {32768, 131072};
  return {8192, 32768, 131072};
}

int run(const GpuBenchOptions& options) {
  GpuBench bench(options);
  for (const int64_t n : lengths(bench)) {
    bench.group("dgsa", [&] { dgsa(bench, n, 0.95); });
    if (!options.quick && !options.tiny) bench.group("dgsa", [&] { dgsa(bench, n, 0); });
    if (options.quick && n > 32768) continue;
    bench.group("dense", [&] { dense(bench, n); });
    bench.group("window", [&] { window(bench, n); });
  }
  return bench.end();
}

}  // namespace
}  // namespace tessera

int main(int count, char** arguments) {
  constexpr const char* kGroups[] = {"dense", "window", "dgsa"};
  try {
    return tessera::run(tessera::gpu_bench_options(count, arguments, kGroups));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
