#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "kernels/decode_attention.h"
#include "kernels/int4_matmul.h"
#include "kernels/matmul.h"
#include "tests/bench/gpu_bench.h"

// Attention of one new token per sequence in one layer of 32 heads in 8 KV groups, d 128, bf16:
// dense over all that the cache keeps; and DGSA, one group that chooses pages and seven with a
// window of 1024. And with the products of that layer, hidden 4096 and 14336 in the feed-forward
// part: dense with weights in bf16, DGSA with weights in 4 bits. Kernels of a step are one graph.
// One line of JSON each.

namespace tessera {
namespace {

constexpr DType kType = DType::kBF16;
constexpr int64_t kBlock = 64;
constexpr int64_t kGateDim = 64;

struct Sizes {
  Sizes(const GpuBench& bench, int64_t n, int64_t sequences)
      : tokens(n),
        batch(sequences),
        heads(bench.size(32, 4)),
        groups(bench.size(8, 2)),
        d(bench.size(128, 16)),
        window(bench.size(1024, 2 * kBlock)) {
    for (int32_t g = 0; g < groups; ++g) (g == 0 ? global : local).push_back(g);
    all.resize(static_cast<size_t>(groups));
    std::iota(all.begin(), all.end(), 0);
  }

  int64_t pages() const { return tokens / kBlock; }
  BlockRule rule() const {
    return {.sink_blocks = 1,
            .window_blocks = window / kBlock,
            .kept = 4 * static_cast<int64_t>(std::bit_width(static_cast<uint64_t>(pages() - 1)))};
  }
  float scale() const { return 1 / std::sqrt(static_cast<float>(d)); }
  std::string name() const { return concat(thousands(tokens), " tokens, batch ", batch); }
  /// Of keys and values.
  double bytes(int64_t rows, int64_t of_groups) const {
    return 2 * 2 * static_cast<double>(batch * rows * of_groups * d);
  }

  int64_t tokens, batch, heads, groups, d, window;
  std::vector<int32_t> all, global, local;
};

/// Keys and values of some groups, and what the new tokens attend to.
struct Cache {
  Cache(GpuTensors& tensors, const Sizes& s, std::span<const int32_t> of, int64_t rows)
      : groups(of),
        k(tensors.random(kType, {std::ssize(of), s.batch, rows, s.d})),
        v(tensors.random(kType, k.shape())) {}

  /// The same rows in all groups and sequences.
  void attend_to(GpuTensors& tensors, std::span<const CacheSpan> list) {
    const int64_t batch = k.shape()[1];
    std::vector<int32_t> numbers;
    for (int64_t i = 0; i < batch; ++i) {
      for (const CacheSpan& span : list) {
        numbers.insert(numbers.end(), {span.first_row, span.rows});
      }
    }
    spans = tensors.from({1, batch, std::ssize(list), 2}, numbers);
    counts = tensors.from({1, batch}, std::vector<int32_t>(static_cast<size_t>(batch),
                                                           static_cast<int32_t>(list.size())));
  }

  std::span<const int32_t> groups;
  TensorView k, v, spans, counts, log_gates;
};

void attend(Stream& stream, const Sizes& s, ConstTensorView q, TensorView o, const Cache& cache) {
  decode_attention(stream, {.o = o,
                            .lse = {},
                            .q = q,
                            .k = cache.k,
                            .v = cache.v,
                            .spans = cache.spans,
                            .log_gates = cache.log_gates,
                            .counts = cache.counts,
                            .groups = cache.groups,
                            .kv_heads = s.groups,
                            .scale = s.scale()});
}

Cache dense_cache(GpuTensors& tensors, const Sizes& s) {
  const CacheSpan everything[] = {{0, static_cast<int32_t>(s.tokens)}};
  Cache cache(tensors, s, s.all, s.tokens);
  cache.attend_to(tensors, everything);
  return cache;
}

void dense(GpuBench& bench, const Sizes& s) {
  GpuTensors tensors(bench);
  const TensorView q = tensors.random(kType, {s.batch, s.heads, s.d});
  const TensorView o = tensors.zeros(kType, q.shape());
  const Cache cache = dense_cache(tensors, s);
  bench.run({.name = "decode_dense",
             .shape = s.name(),
             .dtype = kType,
             .bytes = s.bytes(s.tokens, s.groups),
             .call = [&] { attend(bench.stream(), s, q, o, cache); },
             .graph = true});
}

/// Sequences whose global group chooses.
struct Chooser {
  Chooser(GpuTensors& t, const Sizes& s)
      : rule(s.rule()),
        most(rule.sink_blocks + rule.kept + rule.window_blocks),
        global(t, s, s.global, s.tokens),
        local(t, s, s.local, WindowCache{s.window, kBlock}.rows()),
        selection{t.zeros(DType::kI32, {1, s.batch, rule.kept + 1}),
                  t.zeros(DType::kF32, {1, s.batch, rule.kept + 1}),
                  t.zeros(DType::kI32, {1, s.batch})},
        scores(t.zeros(DType::kF32, {1, s.batch, s.pages()})),
        qt(t.random(DType::kF32, {1, s.batch, kGateDim})),
        kt(t.random(DType::kF32, {1, s.batch, s.pages(), kGateDim})),
        widths(t.from<float>({1}, {1.0f})),
        state(t.zeros(DType::kF32, {1, s.batch, s.d + 2})),
        kbar(t.zeros(kType, {1, s.batch, s.d})),
        k0(t.random(kType, {1, s.batch, s.d})),
        r(t.random(DType::kF32, {1, s.d}, 0.1)) {
    std::vector<int32_t> rows;
    for (int64_t i = 0; i < s.batch * s.pages(); ++i) {
      rows.push_back(static_cast<int32_t>(i % s.pages() * kBlock));
    }
    page_rows = t.from({s.batch, s.pages()}, rows);
    positions = t.from({s.batch}, std::vector<int32_t>(static_cast<size_t>(s.batch),
                                                       static_cast<int32_t>(s.tokens - 1)));
    global.spans = t.zeros(DType::kI32, {1, s.batch, most, 2});
    global.log_gates = t.zeros(DType::kF32, {1, s.batch, most});
    global.counts = t.zeros(DType::kI32, {1, s.batch});
    std::array<CacheSpan, 3> spans;
    const int64_t count = WindowCache{s.window, kBlock}.spans(s.tokens - 1, spans);
    local.attend_to(t, std::span(spans).first(static_cast<size_t>(count)));
  }

  void decode(Stream& stream, const Sizes& s, ConstTensorView q, TensorView o) const {
    decode_select(stream, {.selection = selection,
                           .spans = global.spans,
                           .log_gates = global.log_gates,
                           .counts = global.counts,
                           .scores = scores,
                           .qt = qt,
                           .kt = kt,
                           .page_rows = page_rows,
                           .positions = positions,
                           .block = kBlock,
                           .rule = rule,
                           .gate_keys = 1,
                           .ramp = {0.999f, widths}});
    attend(stream, s, q, o, global);
    attend(stream, s, q, o, local);
    page_gate(
        stream,
        {.state = state, .kbar = kbar, .k0 = k0, .r = r, .positions = positions, .part = kBlock});
  }

  BlockRule rule;
  int64_t most;
  Cache global, local;
  BlockSelection selection;
  TensorView scores, qt, kt, widths, state, kbar, k0, r, page_rows, positions;
};

void sparse(GpuBench& bench, const Sizes& s) {
  GpuTensors tensors(bench);
  const TensorView q = tensors.random(kType, {s.batch, s.heads, s.d});
  const TensorView o = tensors.zeros(kType, q.shape());
  const Chooser chooser(tensors, s);
  const double chosen = s.bytes(chooser.most * kBlock, 1);
  const double near = s.bytes(s.window + kBlock, std::ssize(s.local));
  bench.run({.name = "decode_sparse",
             .shape = s.name(),
             .dtype = kType,
             .bytes = chosen + near + static_cast<double>(chooser.kt.bytes()),
             .call = [&] { chooser.decode(bench.stream(), s, q, o); },
             .graph = true,
             .note = "scores, choice and the pool of the open page included"});
}

/// y = x W^T for the new tokens.
struct Product {
  int64_t n, k;
};
std::vector<Product> products_of_layer(const Sizes& s) {
  const int64_t hidden = s.heads * s.d;
  const int64_t runs = (hidden / 2 * 7 + Int4Weights::kRun - 1) / Int4Weights::kRun;
  const int64_t wide = runs * Int4Weights::kRun;
  return {
      {hidden + 2 * s.groups * s.d, hidden}, {hidden, hidden}, {2 * wide, hidden}, {hidden, wide}};
}

void dense_layer(GpuBench& bench, const Sizes& s) {
  GpuTensors tensors(bench);
  const TensorView q = tensors.random(kType, {s.batch, s.heads, s.d});
  const TensorView o = tensors.zeros(kType, q.shape());
  const Cache cache = dense_cache(tensors, s);
  std::vector<Matmul> products;
  double weights = 0;
  for (const Product& of : products_of_layer(s)) {
    products.push_back({.c = tensors.zeros(kType, {s.batch, of.n}),
                        .a = tensors.random(kType, {s.batch, of.k}),
                        .b = tensors.random(kType, {of.n, of.k}),
                        .transpose_b = true});
    weights += static_cast<double>(of.n * of.k);
  }
  bench.run({.name = "decode_layer_dense",
             .shape = s.name(),
             .dtype = kType,
             .bytes = s.bytes(s.tokens, s.groups) + 2 * weights,
             .call =
                 [&] {
                   for (const Matmul& product : products) matmul(bench.stream(), product);
                   attend(bench.stream(), s, q, o, cache);
                 },
             .graph = true});
}

void int4_layer(GpuBench& bench, const Sizes& s) {
  GpuTensors tensors(bench);
  const TensorView q = tensors.random(kType, {s.batch, s.heads, s.d});
  const TensorView o = tensors.zeros(kType, q.shape());
  const Chooser chooser(tensors, s);
  std::vector<Int4Matmul> products;
  double weights = 0;
  for (const Product& of : products_of_layer(s)) {
    // Any bits are codes.
    products.push_back(
        {.c = tensors.zeros(kType, {s.batch, of.n}),
         .a = tensors.random(kType, {s.batch, of.k}),
         .w = {tensors.zeros(DType::kU8, {1, of.n, of.k / 2}),
               tensors.random(DType::kBF16, {1, of.n, of.k / Int4Weights::kRun, 2})}});
    weights += static_cast<double>(of.n * of.k);
  }
  const double near = s.bytes(s.window + kBlock, std::ssize(s.local));
  bench.run({.name = "decode_layer_int4",
             .shape = s.name(),
             .dtype = kType,
             .bytes = s.bytes(chooser.most * kBlock, 1) + near + 4.5 / 8 * weights,
             .call =
                 [&] {
                   for (const Int4Matmul& product : products) int4_matmul(bench.stream(), product);
                   chooser.decode(bench.stream(), s, q, o);
                 },
             .graph = true,
             .note = "weights in 4 bits, sparse attention"});
}

std::vector<int64_t> lengths(const GpuBench& bench) {
  if (bench.options().tiny) return {1024};
  if (bench.options().quick) return {32768, 131072};
  return {8192, 32768, 131072};
}

std::vector<int64_t> batches(const GpuBench& bench) {
  if (bench.options().tiny) return {2};
  if (bench.options().quick) return {1, 16};
  return {1, 4, 16};
}

int run(const GpuBenchOptions& options) {
  GpuBench bench(options);
  for (const int64_t n : lengths(bench)) {
    for (const int64_t batch : batches(bench)) {
      const Sizes sizes(bench, n, batch);
      bench.group("dense", [&] { dense(bench, sizes); });
      bench.group("sparse", [&] { sparse(bench, sizes); });
      bench.group("layer", [&] {
        dense_layer(bench, sizes);
        int4_layer(bench, sizes);
      });
    }
  }
  return bench.end();
}

}  // namespace
}  // namespace tessera

int main(int count, char** arguments) {
  constexpr const char* kGroups[] = {"dense", "sparse", "layer"};
  try {
    return tessera::run(tessera::gpu_bench_options(count, arguments, kGroups));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
