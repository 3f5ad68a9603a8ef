#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>

#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/reduce.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/support/random_tensor.h"

// Prints time and bandwidth of the kernels that are bound by memory, next to what a plain copy
// reaches on the same threads. Usage: kernels_bench [threads]. No pass, no fail.

namespace tessera {
namespace {

using support::filled;
using support::random_ints;
using support::random_tensor;
using support::Tensor;

/// The fewest microseconds of one call, over about a third of a second: what other programs take
/// from the machine is left out.
double time_us(const std::function<void()>& call) {
  using Clock = std::chrono::steady_clock;
  call();
  double best = 1e30;
  const auto begin = Clock::now();
  for (int calls = 0; calls < 5 || Clock::now() - begin < std::chrono::milliseconds(300); ++calls) {
    const auto start = Clock::now();
    call();
    best = std::min(best, std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  return best;
}

class Bench {
 public:
  explicit Bench(int threads) : stream_(Device{}, threads) {
    const Tensor x(DType::kF32, {32 << 20});  // 128 MiB: beyond every cache
    const Tensor y(DType::kF32, {32 << 20});
    copy_gbps_ = 0;
    run("copy", "[32 Mi] f32", 2 * x.view().bytes(), [&] { cast(stream_, {.y = y, .x = x}); });
  }

  Stream& stream() { return stream_; }

  /// `bytes`: what the contract must read and write once.
  void run(const char* name, const std::string& shape, int64_t bytes,
           const std::function<void()>& call) {
    const double us = time_us(call);
    const double gbps = static_cast<double>(bytes) / us * 1e-3;
    if (copy_gbps_ == 0) copy_gbps_ = gbps;
    std::printf("%-24s %-28s %10.1f us %8.1f GB/s %5.0f %% of copy\n", name, shape.c_str(), us,
                gbps, 100 * gbps / copy_gbps_);
  }

 private:
  Stream stream_;
  double copy_gbps_ = 0;
};

void bench_norm(Bench& bench, DType dtype, int64_t tokens, int64_t dim) {
  const Shape shape{tokens, dim};
  const std::string name = concat(shape, " ", name_of(dtype));
  const Tensor x = random_tensor(dtype, shape, 1);
  const Tensor y(dtype, shape);
  const Tensor h(dtype, shape);
  const Tensor weight = filled(dtype, {dim}, 1);
  const Tensor rstd(DType::kF32, {tokens});
  const Tensor dweight(DType::kF32, {dim});
  const int64_t bytes = x.view().bytes();
  bench.run("rms_norm_forward", name, 2 * bytes, [&] {
    rms_norm_forward(bench.stream(),
                     {.y = y, .rstd = rstd, .x = x, .weight = weight, .epsilon = 1e-5f});
  });
  bench.run("rms_norm_forward + h", name, 4 * bytes, [&] {
    rms_norm_forward(
        bench.stream(),
        {.y = y, .rstd = rstd, .x = x, .weight = weight, .epsilon = 1e-5f, .residual = x, .h = h});
  });
  bench.run("rms_norm_backward", name, 4 * bytes, [&] {
    rms_norm_backward(bench.stream(), {.dh = h,
                                       .dweight = dweight,
                                       .dy = y,
                                       .h = x,
                                       .weight = weight,
                                       .rstd = rstd,
                                       .dresidual = x});
  });
}

void bench_swiglu(Bench& bench, DType dtype, int64_t rows, int64_t dim) {
  const std::string name = concat(Shape{rows, dim}, " ", name_of(dtype));
  const Tensor gate_up = random_tensor(dtype, {rows, 2 * dim}, 2);
  const Tensor dgate_up(dtype, {rows, 2 * dim});
  const Tensor y(dtype, {rows, dim});
  const Tensor dy = random_tensor(dtype, {rows, dim}, 3);
  bench.run("swiglu_forward", name, 3 * y.view().bytes(),
            [&] { swiglu_forward(bench.stream(), {.y = y, .gate_up = gate_up}); });
  bench.run("swiglu_backward", name, 5 * y.view().bytes(), [&] {
    swiglu_backward(bench.stream(), {.dgate_up = dgate_up, .dy = dy, .gate_up = gate_up});
  });
  bench.run("sigmoid_gate_forward", name, 3 * y.view().bytes(),
            [&] { sigmoid_gate_forward(bench.stream(), {.y = y, .x = dy, .g = dy}); });
}

void bench_cross_entropy(Bench& bench, DType dtype, int64_t tokens, int64_t vocabulary) {
  const Tensor logits = random_tensor(dtype, {tokens, vocabulary}, 4);
  const Tensor dlogits(dtype, {tokens, vocabulary});
  const Tensor losses(DType::kF32, {tokens});
  const Tensor stats(DType::kF32, {tokens, kSoftmaxStats});
  const Tensor targets = random_ints({tokens}, 5, 0, static_cast<int32_t>(vocabulary));
  bench.run(
      "cross_entropy", concat(logits.shape(), " ", name_of(dtype)), 2 * logits.view().bytes(), [&] {
        Stream& stream = bench.stream();
        softmax_stats(
            stream,
            {.stats = stats, .logits = logits, .targets = targets, .vocabulary = vocabulary});
        merge_softmax_stats(stream, {.losses = losses,
                                     .merged = stats,
                                     .stats = stats.view().reshape({1, tokens, kSoftmaxStats}),
                                     .targets = targets});
        cross_entropy_gradient(stream, {.dlogits = dlogits,
                                        .logits = logits,
                                        .merged = stats,
                                        .targets = targets,
                                        .vocabulary = vocabulary,
                                        .scale = 1});
      });
}

void bench_rope(Bench& bench, DType dtype, int64_t tokens, int64_t heads, int64_t d) {
  const Tensor x = random_tensor(dtype, {tokens, heads, d}, 6);
  const Tensor positions = random_ints({tokens}, 7, 0, 65536);
  bench.run("rope", concat(x.shape(), " ", name_of(dtype)), 2 * x.view().bytes(),
            [&] { rope(bench.stream(), {.x = x, .positions = positions, .base = 1e6f}); });
}

void bench_embedding(Bench& bench, DType dtype, int64_t tokens, int64_t dim) {
  constexpr int32_t kVocabulary = 50304;
  const Tensor table(dtype, {kVocabulary, dim});
  const Tensor dtable(DType::kF32, {kVocabulary, dim});
  const Tensor y(dtype, {tokens, dim});
  const Tensor ids = random_ints({tokens}, 8, 0, kVocabulary);
  const std::string name = concat(y.shape(), " ", name_of(dtype));
  bench.run("embedding_forward", name, 2 * y.view().bytes(),
            [&] { embedding_forward(bench.stream(), {.y = y, .table = table, .ids = ids}); });
  bench.run("embedding_backward", name, y.view().bytes() + 8 * tokens * dim,
            [&] { embedding_backward(bench.stream(), {.dtable = dtable, .dy = y, .ids = ids}); });
}

void bench_adamw(Bench& bench, DType dtype, int64_t count) {
  const Tensor value(dtype, {count});
  const Tensor master = filled(DType::kF32, {count}, 1);
  const Tensor m(DType::kF32, {count});
  const Tensor v(DType::kF32, {count});
  const Tensor gradient = filled(DType::kF32, {count}, 0.5);
  bench.run("adamw", concat(Shape{count}, " ", name_of(dtype)),
            7 * master.view().bytes() + value.view().bytes(), [&] {
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
            });
}

void bench_reduce(Bench& bench, DType dtype, int64_t count) {
  const Tensor x = filled(dtype, {count}, 0.5);
  const Tensor total(DType::kF64, {1});
  const std::string name = concat(Shape{count}, " ", name_of(dtype));
  bench.run("add_sum_of_squares", name, x.view().bytes(),
            [&] { add_sum_of_squares(bench.stream(), {.total = total, .x = x}); });
  bench.run("count_non_finite", name, x.view().bytes(),
            [&] { count_non_finite(bench.stream(), x); });
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  tessera::Bench bench(threads);
  for (const auto dtype : {tessera::DType::kBF16, tessera::DType::kF32}) {
    tessera::bench_norm(bench, dtype, 16384, 1024);
    tessera::bench_swiglu(bench, dtype, 8192, 2816);
    tessera::bench_cross_entropy(bench, dtype, 512, 50304);
    tessera::bench_rope(bench, dtype, 8192, 16, 64);
    tessera::bench_embedding(bench, dtype, 8192, 1024);
    tessera::bench_adamw(bench, dtype, 16 << 20);
    tessera::bench_reduce(bench, dtype, 32 << 20);
  }
}
