// Products of one decoding step on the CPU, weights in bf16 and in 4 bits: int4_bench [threads].
// y = x W^T of 4096 x 4096 for some rows of bf16, through as many matrices in turn as no cache
// holds. A line per number of rows: microseconds of a product, medians of rounds in which both come
// in turn, and their ratio.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/core/random.h"
#include "kernels/int4_matmul.h"
#include "kernels/matmul.h"

namespace tessera {
namespace {

constexpr int64_t kSize = 4096;
constexpr int64_t kMatrices = 12;
constexpr int kRounds = 7;

/// Seconds of one call.
double time_of(const std::function<void()>& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> times) {
  std::ranges::sort(times);
  return times[times.size() / 2];
}

struct Matrices {
  explicit Matrices(Stream& stream)
      : plain(Device{}, kMatrices * kSize * kSize * 2),
        codes(Device{}, kMatrices * kSize * kSize / 2),
        scales(Device{}, kMatrices * kSize * kSize / 16) {
    const TensorView first = matrix(0);
    for (int64_t i = 0; i < kSize * kSize; ++i) {
      const auto words = philox(1, 0, static_cast<uint64_t>(i));
      first.as<BF16>()[static_cast<size_t>(i)] =
          from_float<BF16>(0.02f * static_cast<float>(normal(words[0], words[1])));
    }
    for (int64_t i = 0; i < kMatrices; ++i) {
      std::ranges::copy(first.as<BF16>(), matrix(i).as<BF16>().begin());
      quantize_int4(stream, {code(i), scale(i), matrix(i).reshape({1, kSize, kSize})});
    }
  }
  TensorView matrix(int64_t i) const {
    return plain.view(DType::kBF16, {kSize, kSize}, i * kSize * kSize * 2);
  }
  TensorView code(int64_t i) const {
    return codes.view(DType::kU8, {1, kSize, kSize / 2}, i * kSize * kSize / 2);
  }
  TensorView scale(int64_t i) const {
    return scales.view(DType::kBF16, {1, kSize, kSize / 64, 2}, i * kSize * kSize / 16);
  }

  Buffer plain, codes, scales;
};

void run(int threads) {
  Stream stream(Device{}, threads);
  const Matrices w(stream);
  std::printf("%d threads\nrows  bf16 us  int4 us  ratio\n", threads);
  for (const int64_t rows : {1, 2, 4, 8, 16, 64}) {
    const Buffer memory(Device{}, 2 * rows * kSize * 2);
    const TensorView x = memory.view(DType::kBF16, {rows, kSize});
    const TensorView y = memory.view(DType::kBF16, {rows, kSize}, rows * kSize * 2);
    std::ranges::copy(w.matrix(0).as<BF16>().first(x.as<BF16>().size()), x.as<BF16>().begin());
    std::vector<double> plain, int4;
    for (int round = 0; round < kRounds; ++round) {
      plain.push_back(time_of([&] {
        for (int64_t i = 0; i < kMatrices; ++i) {
          matmul(stream, {.c = y, .a = x, .b = w.matrix(i), .transpose_b = true});
        }
      }));
      int4.push_back(time_of([&] {
        for (int64_t i = 0; i < kMatrices; ++i) {
          int4_matmul(stream, {.c = y, .a = x, .w = {w.code(i), w.scale(i)}});
        }
      }));
    }
    const double micro = 1e6 / static_cast<double>(kMatrices);
    std::printf("%4lld %8.0f %8.0f %6.2f\n", static_cast<long long>(rows), micro * median(plain),
                micro * median(int4), median(plain) / median(int4));
  }
}

}  // namespace
}  // namespace tessera

int main(int count, char** arguments) {
  tessera::run(count > 1 ? std::atoi(arguments[1]) : 1);
}
