#include <algorithm>
#include <cmath>
#include <cstdio>

#include "kernels/core/build.h"
#include "kernels/grouped_matmul.h"
#include "kernels/matmul.h"
#include "tests/bench/gpu_bench.h"

// Matrix products in bf16: of linear layers, and of experts with as many rows as tokens chose them.
// One line of JSON each (gpu_bench.h).

namespace tessera {
namespace {

constexpr DType kType = DType::kBF16;

/// y = x W^T with m tokens, k inputs and n outputs, and its two gradients.
void linear(GpuBench& bench, int64_t m, int64_t n, int64_t k) {
  GpuTensors tensors(bench);
  const TensorView x = tensors.random(kType, {m, k});
  const TensorView w = tensors.random(kType, {n, k});
  const TensorView y = tensors.random(kType, {m, n});
  const TensorView dx = tensors.zeros(kType, {m, k});
  const TensorView dw = tensors.zeros(DType::kF32, {n, k});
  const std::string shape = concat(m, " x ", n, " x ", k);
  const double flops = 2 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const auto measure = [&](const char* name, const Matmul& product) {
    bench.run(
        {.name = name, .shape = shape, .dtype = kType, .flops = flops, .call = [&bench, product] {
           matmul(bench.stream(), product);
         }});
  };
  measure("matmul_forward", {.c = y, .a = x, .b = w, .transpose_b = true});
  measure("matmul_dx", {.c = dx, .a = y, .b = w});
  measure("matmul_dw", {.c = dw, .a = y, .b = x, .transpose_a = true, .accumulate = true});
}

void dense(GpuBench& bench) {
  const int64_t tokens = bench.size(16384, 24);
  linear(bench, tokens, bench.size(4096, 32), bench.size(4096, 32));
  if (bench.options().quick || bench.options().tiny) return;
  linear(bench, tokens, 28672, 4096);
  linear(bench, tokens, 4096, 14336);
  linear(bench, tokens, 2560, 2048);
  linear(bench, 2048, 151936, 4096);
}

/// Where the rows of each expert begin. `spread` of the logarithms of the loads: 0 is even. With
/// some, the last expert gets nothing.
std::vector<int32_t> loads(int64_t experts, int64_t rows, double spread) {
  std::vector<double> shares;
  for (int64_t e = 0; e < experts; ++e) {
    const auto words = philox(3, 0, static_cast<uint64_t>(e));
    shares.push_back(std::exp(spread * normal(words[0], words[1])));
  }
  if (spread > 0) shares.back() = 0;
  double sum = 0;
  for (const double share : shares) sum += share;
  std::vector<int32_t> offsets{0};
  double before = 0;
  for (const double share : shares) {
    before += share;
    offsets.push_back(static_cast<int32_t>(std::lround(before / sum * static_cast<double>(rows))));
  }
  return offsets;
}

struct Experts {
  int64_t experts, rows, n, k;
  double spread;
};

std::string describe(const Experts& e, const std::vector<int32_t>& offsets) {
  int32_t most = 0;
  for (size_t i = 1; i < offsets.size(); ++i) most = std::max(most, offsets[i] - offsets[i - 1]);
  const int64_t mean = e.rows / e.experts;
  const std::string shape = concat(e.experts, " x ", mean, " x ", e.n, " x ", e.k);
  if (e.spread == 0) return shape;
  char load[64];
  std::snprintf(load, sizeof(load), ", uneven: at most %.1f x the mean",
                static_cast<double>(most) / static_cast<double>(mean));
  return shape + load;
}

/// y = x W_e^T for the rows of each expert e, n outputs and k inputs, and its two gradients.
void of_experts(GpuBench& bench, const Experts& e) {
  GpuTensors tensors(bench);
  const std::vector<int32_t> starts = loads(e.experts, e.rows, e.spread);
  const TensorView offsets = tensors.from({e.experts + 1}, starts);
  const TensorView x = tensors.random(kType, {e.rows, e.k});
  const TensorView w = tensors.random(kType, {e.experts, e.n, e.k});
  const TensorView y = tensors.random(kType, {e.rows, e.n});
  const TensorView dx = tensors.zeros(kType, {e.rows, e.k});
  const TensorView dw = tensors.zeros(DType::kF32, {e.experts, e.n, e.k});
  const std::string shape = describe(e, starts);
  const double flops =
      2 * static_cast<double>(e.rows) * static_cast<double>(e.n) * static_cast<double>(e.k);
  const auto measure = [&](const char* name, const std::function<void()>& call) {
    bench.run({.name = name, .shape = shape, .dtype = kType, .flops = flops, .call = call});
  };
  measure("grouped_matmul_forward", [&] {
    grouped_matmul(bench.stream(),
                   {.c = y, .a = x, .b = w, .offsets = offsets, .transpose_b = true});
  });
  measure("grouped_matmul_dx",
          [&] { grouped_matmul(bench.stream(), {.c = dx, .a = y, .b = w, .offsets = offsets}); });
  measure("grouped_matmul_dw", [&] {
    grouped_matmul_weight(bench.stream(), {.c = dw, .a = y, .b = x, .offsets = offsets});
  });
  if constexpr (kCudaBuilt) {
    if (!bench.stream().on(DeviceKind::kGpu)) return;
    // Those above are for Hopper where it is one.
    measure("grouped_matmul_forward_sm80", [&] {
      gpu::grouped_matmul_sm80(bench.stream(),
                               {.c = y, .a = x, .b = w, .offsets = offsets, .transpose_b = true});
    });
    measure("grouped_matmul_dx_sm80", [&] {
      gpu::grouped_matmul_sm80(bench.stream(), {.c = dx, .a = y, .b = w, .offsets = offsets});
    });
    measure("grouped_matmul_dw_sm80", [&] {
      gpu::grouped_matmul_weight_sm80(bench.stream(),
                                      {.c = dw, .a = y, .b = x, .offsets = offsets});
    });
  }
}

void grouped(GpuBench& bench) {
  if (bench.options().tiny) {
    of_experts(bench, {4, 48, 32, 16, 0});
    of_experts(bench, {4, 48, 32, 16, 0.7});
    return;
  }
  of_experts(bench, {16, 16 * 2048, 768, 2048, 0});
  of_experts(bench, {16, 16 * 2048, 768, 2048, 0.7});
  if (bench.options().quick) return;
  // The experts of two well-known models: many small ones, and few large ones.
  of_experts(bench, {128, 65536, 1536, 2048, 0.7});
  of_experts(bench, {128, 65536, 2048, 768, 0.7});
  of_experts(bench, {8, 16384, 28672, 4096, 0.3});
}

int run(const GpuBenchOptions& options) {
  GpuBench bench(options);
  bench.group("dense", [&] { dense(bench); });
  bench.group("grouped", [&] { grouped(bench); });
  return bench.end();
}

}  // namespace
}  // namespace tessera

int main(int count, char** arguments) {
  constexpr const char* kGroups[] = {"dense", "grouped"};
  try {
    return tessera::run(tessera::gpu_bench_options(count, arguments, kGroups));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
