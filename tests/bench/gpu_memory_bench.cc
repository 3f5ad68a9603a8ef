#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/permute_tokens.h"
#include "kernels/reduce.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/route.h"
#include "kernels/swiglu.h"
#include "kernels/token_smear.h"
#include "tests/bench/gpu_bench.h"

// Kernels that are bound by the GPU's memory, in shapes of models of some billion weights, beside
// the rate of a copy. The shapes are those of gpu_peers.py. One line of JSON each (gpu_bench.h).

namespace tessera {
namespace {

constexpr DType kType = DType::kBF16;

double bytes_of(std::initializer_list<ConstTensorView> tensors) {
  double sum = 0;
  for (const ConstTensorView& tensor : tensors) sum += static_cast<double>(tensor.bytes());
  return sum;
}

void norm(GpuBench& bench) {
  GpuTensors tensors(bench);
  const Shape shape{bench.size(16384, 5), bench.size(4096, 64)};
  const TensorView x = tensors.random(kType, shape);
  const TensorView residual = tensors.random(kType, shape);
  const TensorView weight = tensors.random(kType, {shape[1]});
  const TensorView y = tensors.zeros(kType, shape);
  const TensorView h = tensors.zeros(kType, shape);
  const TensorView rstd = tensors.zeros(DType::kF32, {shape[0]});
  const TensorView dweight = tensors.zeros(DType::kF32, {shape[1]});
  const auto forward = [&](ConstTensorView added, TensorView sum) {
    rms_norm_forward(bench.stream(), {.y = y,
                                      .rstd = rstd,
                                      .x = x,
                                      .weight = weight,
                                      .epsilon = 1e-5f,
                                      .residual = added,
                                      .h = sum});
  };
  bench.run({.name = "rms_norm_forward",
             .shape = concat(shape),
             .dtype = kType,
             .bytes = bytes_of({x, y}),
             .call = [&] { forward({}, {}); }});
  bench.run({.name = "rms_norm_forward_residual",
             .shape = concat(shape),
             .dtype = kType,
             .bytes = bytes_of({x, residual, y, h}),
             .call = [&] { forward(residual, h); }});
  bench.run({.name = "rms_norm_backward_residual",
             .shape = concat(shape),
             .dtype = kType,
             .bytes = bytes_of({x, residual, y, h}),
             .call = [&] {
               rms_norm_backward(bench.stream(), {.dh = h,
                                                  .dweight = dweight,
                                                  .dy = y,
                                                  .h = x,
                                                  .weight = weight,
                                                  .rstd = rstd,
                                                  .dresidual = residual});
             }});
}

void rotary(GpuBench& bench) {
  GpuTensors tensors(bench);
  const Shape shape{bench.size(16384, 5), bench.size(32, 2), bench.size(128, 16)};
  const TensorView x = tensors.random(kType, shape);
  const TensorView positions = tensors.ints({shape[0]}, 0, 131072);
  bench.run(
      {.name = "rope",
       .shape = concat(shape),
       .dtype = kType,
       .bytes = 2 * bytes_of({x}),
       .call = [&] { rope(bench.stream(), {.x = x, .positions = positions, .base = 1e6f}); }});
}

void swiglu(GpuBench& bench) {
  GpuTensors tensors(bench);
  const Shape shape{bench.size(16384, 5), bench.size(8192, 64)};
  const TensorView gate_up = tensors.random(kType, {shape[0], 2 * shape[1]});
  const TensorView dgate_up = tensors.zeros(kType, gate_up.shape());
  const TensorView y = tensors.zeros(kType, shape);
  const TensorView dy = tensors.random(kType, shape);
  bench.run({.name = "swiglu_forward",
             .shape = concat(shape),
             .dtype = kType,
             .bytes = bytes_of({gate_up, y}),
             .call = [&] { swiglu_forward(bench.stream(), {.y = y, .gate_up = gate_up}); }});
  bench.run({.name = "swiglu_backward",
             .shape = concat(shape),
             .dtype = kType,
             .bytes = bytes_of({gate_up, dgate_up, dy}),
             .call = [&] {
               swiglu_backward(bench.stream(),
                               {.dgate_up = dgate_up, .dy = dy, .gate_up = gate_up});
             }});
}

void embedding(GpuBench& bench) {
  GpuTensors tensors(bench);
  const int64_t tokens = bench.size(16384, 9);
  const int64_t vocabulary = bench.size(151936, 50);
  const int64_t dim = bench.size(4096, 64);
  const TensorView table = tensors.random(kType, {vocabulary, dim});
  const TensorView dtable = tensors.zeros(DType::kF32, {vocabulary, dim});
  const TensorView y = tensors.random(kType, {tokens, dim});
  const TensorView ids = tensors.ints({tokens}, 0, static_cast<int32_t>(vocabulary));
  bench.run(
      {.name = "embedding_forward",
       .shape = concat(y.shape(), " of ", vocabulary),
       .dtype = kType,
       .bytes = 2 * bytes_of({y}),
       .call = [&] { embedding_forward(bench.stream(), {.y = y, .table = table, .ids = ids}); }});
  bench.run(
      {.name = "embedding_backward",
       .shape = concat(y.shape(), " of ", vocabulary),
       .dtype = kType,
       .bytes = 5 * bytes_of({y}),
       .call = [&] { embedding_backward(bench.stream(), {.dtable = dtable, .dy = y, .ids = ids}); },
       .note = "sorts the ids; f32 rows are read and written"});
  const TensorView weight = tensors.random(kType, {1, dim});
  const TensorView dweight = tensors.zeros(DType::kF32, {1, dim});
  const TensorView before = ids.reshape({1, tokens});
  bench.run({.name = "token_smear_forward",
             .shape = concat(y.shape(), " of ", vocabulary),
             .dtype = kType,
             .bytes = 3 * bytes_of({y}),
             .call = [&] {
               token_smear_forward(bench.stream(),
                                   {.y = y, .table = table, .weight = weight, .before = before});
             }});
  bench.run({.name = "token_smear_backward",
             .shape = concat(y.shape(), " of ", vocabulary),
             .dtype = kType,
             .bytes = 7 * bytes_of({y}),
             .call =
                 [&] {
                   token_smear_backward(bench.stream(), {.dtable = dtable,
                                                         .dweight = dweight,
                                                         .dy = y,
                                                         .table = table,
                                                         .weight = weight,
                                                         .before = before});
                 },
             .note = "embedding_backward, and the weights' sums"});
}

void cross_entropy(GpuBench& bench) {
  GpuTensors tensors(bench);
  const int64_t tokens = bench.size(8192, 5);
  const int64_t vocabulary = bench.size(151936, 96);
  const TensorView logits = tensors.random(kType, {tokens, vocabulary});
  const TensorView dlogits = tensors.zeros(kType, logits.shape());
  const TensorView stats = tensors.zeros(DType::kF32, {tokens, kSoftmaxStats});
  const TensorView losses = tensors.zeros(DType::kF32, {tokens});
  const TensorView targets = tensors.ints({tokens}, 0, static_cast<int32_t>(vocabulary));
  const auto forward = [&] {
    softmax_stats(bench.stream(),
                  {.stats = stats, .logits = logits, .targets = targets, .vocabulary = vocabulary});
    merge_softmax_stats(bench.stream(), {.losses = losses,
                                         .merged = stats,
                                         .stats = stats.reshape({1, tokens, kSoftmaxStats}),
                                         .targets = targets});
  };
  bench.run({.name = "cross_entropy_forward",
             .shape = concat(logits.shape()),
             .dtype = kType,
             .bytes = bytes_of({logits}),
             .call = forward});
  bench.run({.name = "cross_entropy_both",
             .shape = concat(logits.shape()),
             .dtype = kType,
             .bytes = bytes_of({logits, logits, dlogits}),
             .call = [&] {
               forward();
               cross_entropy_gradient(bench.stream(), {.dlogits = dlogits,
                                                       .logits = logits,
                                                       .merged = stats,
                                                       .targets = targets,
                                                       .vocabulary = vocabulary,
                                                       .scale = 1e-4f});
             }});
}

void optimizer(GpuBench& bench) {
  GpuTensors tensors(bench);
  const Shape shape{bench.size(int64_t{128} << 20, 1000)};
  const TensorView value = tensors.zeros(kType, shape);
  const TensorView master = tensors.random(DType::kF32, shape);
  const TensorView m = tensors.zeros(DType::kF32, shape);
  const TensorView v = tensors.zeros(DType::kF32, shape);
  const TensorView gradient = tensors.random(DType::kF32, shape);
  bench.run({.name = "adamw",
             .shape = concat(shape),
             .dtype = kType,
             .bytes = 2 * bytes_of({master, m, v}) + bytes_of({gradient, value}),
             .call =
                 [&] {
                   adamw(bench.stream(), {.value = value,
                                          .master = master,
                                          .m = m,
                                          .v = v,
                                          .gradient = gradient,
                                          .step = 10,
                                          .rate = 1e-3f,
                                          .beta1 = 0.9f,
                                          .beta2 = 0.95f,
                                          .epsilon = 1e-8f,
                                          .decay = 0.1f,
                                          .gradient_scale = 1});
                 },
             .note = "bf16 values, f32 masters and moments"});
}

void casts_and_sums(GpuBench& bench) {
  GpuTensors tensors(bench);
  const Shape shape{bench.size(int64_t{256} << 20, 1000)};
  const TensorView wide = tensors.random(DType::kF32, shape);
  const TensorView narrow = tensors.random(kType, shape);
  const TensorView total = tensors.zeros(DType::kF64, {1});
  bench.run({.name = "cast_to_bf16",
             .shape = concat(shape),
             .dtype = DType::kF32,
             .bytes = bytes_of({wide, narrow}),
             .call = [&] { cast(bench.stream(), {.y = narrow, .x = wide}); }});
  bench.run({.name = "add",
             .shape = concat(shape),
             .dtype = kType,
             .bytes = 3 * bytes_of({narrow}),
             .call = [&] { add(bench.stream(), {.y = narrow, .a = narrow, .b = narrow}); }});
  bench.run({.name = "sum_of_squares",
             .shape = concat(shape),
             .dtype = DType::kF32,
             .bytes = bytes_of({wide}),
             .call = [&] { add_sum_of_squares(bench.stream(), {.total = total, .x = wide}); },
             .note = "reads only: beside the rate of a copy, which writes too"});
}

/// Routing of a layer of 128 experts, 8 per token, and the tokens' way to them and back.
void experts(GpuBench& bench) {
  GpuTensors tensors(bench);
  const int64_t tokens = bench.size(16384, 21);
  const int64_t experts = bench.size(128, 8);
  const int64_t slots = bench.size(8, 2);
  const int64_t dim = bench.size(2048, 64);
  const int64_t rows = tokens * slots;
  const TensorView logits = tensors.random(DType::kF32, {tokens, experts});
  const TensorView chosen = tensors.zeros(DType::kI32, {tokens, slots});
  const TensorView weights = tensors.zeros(DType::kF32, {tokens, slots});
  const TensorView counts = tensors.zeros(DType::kF32, {1, experts});
  const TensorView row_of = tensors.zeros(DType::kI32, {tokens, slots});
  const TensorView source_of = tensors.zeros(DType::kI32, {rows});
  const TensorView offsets = tensors.zeros(DType::kI32, {experts + 1});
  const std::string shape = concat(tokens, " tokens, ", slots, " of ", experts);
  bench.run({.name = "route_forward",
             .shape = shape,
             .dtype = DType::kF32,
             .bytes = bytes_of({logits, chosen, weights, counts}),
             .call = [&] {
               route_forward(bench.stream(), {.experts = chosen,
                                              .weights = weights,
                                              .counts = counts,
                                              .logits = logits,
                                              .mode = RouterMode::kSoftmaxNormalized});
             }});
  bench.run(
      {.name = "sort_by_expert",
       .shape = shape,
       .dtype = DType::kI32,
       .bytes = bytes_of({chosen, row_of, source_of, offsets}),
       .call = [&] {
         sort_by_expert(
             bench.stream(),
             {.row_of = row_of, .source_of = source_of, .offsets = offsets, .experts = chosen});
       }});
  const TensorView x = tensors.random(kType, {tokens, dim});
  const TensorView base = tensors.random(kType, {tokens, dim});
  const TensorView y = tensors.zeros(kType, {rows, dim});
  bench.run({.name = "gather_rows",
             .shape = concat(y.shape(), " of ", tokens),
             .dtype = kType,
             .bytes = bytes_of({x, y}),
             .call = [&] {
               gather_rows(
                   bench.stream(),
                   {.y = y, .x = x, .source_of = source_of, .slots = slots, .row_of = row_of});
             }});
  bench.run({.name = "gather_sum",
             .shape = concat(y.shape(), " to ", tokens),
             .dtype = kType,
             .bytes = bytes_of({y, base, x}),
             .call = [&] {
               gather_sum(bench.stream(), {.y = x, .x = y, .row_of = row_of, .base = base});
             }});
}

int run(const GpuBenchOptions& options) {
  GpuBench bench(options);
  bench.group("norm", [&] { norm(bench); });
  bench.group("rope", [&] { rotary(bench); });
  bench.group("swiglu", [&] { swiglu(bench); });
  bench.group("experts", [&] { experts(bench); });
  bench.group("adamw", [&] { optimizer(bench); });
  bench.group("cross_entropy", [&] { cross_entropy(bench); });
  bench.group("embedding", [&] { embedding(bench); });
  bench.group("sums", [&] { casts_and_sums(bench); });
  return bench.end();
}

}  // namespace
}  // namespace tessera

int main(int count, char** arguments) {
  constexpr const char* kGroups[] = {"norm",  "rope",          "swiglu",    "experts",
                                     "adamw", "cross_entropy", "embedding", "sums"};
  try {
    return tessera::run(tessera::gpu_bench_options(count, arguments, kGroups));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
