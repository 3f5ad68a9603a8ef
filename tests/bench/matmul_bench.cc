// Rates of kernels/matmul.h and kernels/grouped_matmul.h on the CPU: matmul_bench [threads].
// The best rate of a dtype in the run is "the machine's measured matmul rate", in which other
// measurements are expressed. One thread is measured in processor time, so that other programs
// disturb it little; several need the machine to themselves.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/grouped_matmul.h"
#include "kernels/matmul.h"

namespace tessera {
namespace {

constexpr int64_t kExperts = 64;

struct Row {
  std::string name;
  double gflops[3];
};

double seconds_now(int threads) {
  timespec time{};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// GFLOP/s of the fastest of several calls after the first, which compiles.
double rate(Stream& stream, double flops, const std::function<void()>& call) {
  const int threads = stream.threads().threads();
  call();
  double best = 1e30;
  double total = 0;
  for (int repeat = 0; repeat < 2 || (total < 0.1 && repeat < 20); ++repeat) {
    const double start = seconds_now(threads);
    call();
    const double seconds = seconds_now(threads) - start;
    best = std::min(best, seconds);
    total += seconds;
  }
  return flops / best / 1e9;
}

/// Small numbers, none of them special.
TensorView numbers(const Buffer& buffer, DType dtype, Shape shape) {
  const TensorView x = buffer.view(dtype, shape);
  uint32_t state = 1;
  const auto next = [&] {
    state = state * 1664525 + 1013904223;
    return static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
  };
  with_float_type(dtype, [&]<class T>() {
    for (T& value : x.as<T>()) value = from_float<T>(next());
  });
  return x;
}

struct Operands {
  Buffer x, w, y, dw;  // the largest of each

  Operands(int64_t x_elements, int64_t w_elements, int64_t y_elements)
      : x(Device{}, x_elements * 4),
        w(Device{}, w_elements * 4),
        y(Device{}, y_elements * 4),
        dw(Device{}, w_elements * 4) {}
};

/// The three products of a linear layer of m tokens, [k] to [n].
Row measure(Stream& stream, DType dtype, int64_t m, int64_t n, int64_t k) {
  const Operands at(m * k, n * k, m * n);
  const TensorView x = numbers(at.x, dtype, {m, k});
  const TensorView w = numbers(at.w, dtype, {n, k});
  const TensorView y = numbers(at.y, dtype, {m, n});
  const TensorView dw = at.dw.view(DType::kF32, {n, k});
  const double flops = 2.0 * static_cast<double>(m * n * k);
  const double forward =
      rate(stream, flops, [&] { matmul(stream, {.c = y, .a = x, .b = w, .transpose_b = true}); });
  const double dx = rate(stream, flops, [&] { matmul(stream, {.c = x, .a = y, .b = w}); });
  const double weight = rate(stream, flops, [&] {
    matmul(stream, {.c = dw, .a = y, .b = x, .transpose_a = true, .accumulate = true});
  });
  return {concat(m, " x ", n, " x ", k), {forward, dx, weight}};
}

/// The same for experts, from no row to two and a half times the mean.
Row measure_groups(Stream& stream, DType dtype, int64_t rows, int64_t n, int64_t k) {
  const Operands at(rows * k, kExperts * n * k, rows * n);
  const TensorView x = numbers(at.x, dtype, {rows, k});
  const TensorView w = numbers(at.w, dtype, {kExperts, n, k});
  const TensorView y = numbers(at.y, dtype, {rows, n});
  const TensorView dw = at.dw.view(DType::kF32, {kExperts, n, k});
  const Buffer offset_memory(Device{}, (kExperts + 1) * 4);
  const TensorView offsets = offset_memory.view(DType::kI32, {kExperts + 1});
  for (int64_t e = 0; e <= kExperts; ++e) {
    const double share = static_cast<double>(e) / kExperts;
    offsets.as<int32_t>()[static_cast<size_t>(e)] =
        static_cast<int32_t>(static_cast<double>(rows) * share * share * (1 + share) / 2);
  }
  const double flops = 2.0 * static_cast<double>(rows * n * k);
  const double forward = rate(stream, flops, [&] {
    grouped_matmul(stream, {.c = y, .a = x, .b = w, .offsets = offsets, .transpose_b = true});
  });
  const double dx = rate(
      stream, flops, [&] { grouped_matmul(stream, {.c = x, .a = y, .b = w, .offsets = offsets}); });
  const double weight = rate(stream, flops, [&] {
    grouped_matmul_weight(stream, {.c = dw, .a = y, .b = x, .offsets = offsets});
  });
  return {concat(kExperts, " experts, ", rows, " x ", n, " x ", k), {forward, dx, weight}};
}

void print(const std::vector<Row>& rows, DType dtype, int threads) {
  double best = 0;
  for (const Row& row : rows) best = std::max({best, row.gflops[0], row.gflops[1], row.gflops[2]});
  std::printf("\n%s, %d threads: the measured matmul rate is %.0f GFLOP/s\n", name_of(dtype),
              threads, best);
  std::printf("%-34s %6s %5s %6s %5s %6s %5s\n", "tokens x out x in, GFLOP/s", "y", "%", "dx", "%",
              "dW", "%");
  for (const Row& row : rows) {
    std::printf("%-34s", row.name.c_str());
    for (const double gflops : row.gflops)
      std::printf(" %6.0f %4.0f%%", gflops, 100 * gflops / best);
    std::printf("\n");
  }
}

void run(int threads) {
  Stream stream(Device{}, threads);
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    std::vector<Row> rows;
    for (const int64_t m : {512, 2048}) {
      for (const int64_t n : {768, 2304, 3072, 50257}) {
        for (const int64_t k : {768, 2048, 3072}) rows.push_back(measure(stream, dtype, m, n, k));
      }
    }
    for (const int64_t m : {1, 4, 16, 64}) rows.push_back(measure(stream, dtype, m, 3072, 768));
    for (const int64_t m : {1, 16}) rows.push_back(measure(stream, dtype, m, 50257, 768));
    for (const int64_t tokens : {1024, 8192}) {
      rows.push_back(measure_groups(stream, dtype, tokens, 1024, 768));
    }
    print(rows, dtype, threads);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  if (threads < 1) {
    std::fprintf(stderr, "usage: matmul_bench [threads]\n");
    return 2;
  }
  tessera::run(threads);
}
