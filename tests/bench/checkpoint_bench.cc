#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/crc32c.h"
#include "checkpoint/digest.h"
#include "checkpoint/file_hash.h"
#include "checkpoint/store.h"
#include "checkpoint/verify.h"
#include "kernels/core/buffer.h"

// Checksums in memory, and a save, a load and a full check of 1 GiB in the directory given.
// checkpoint_bench DIRECTORY

namespace tessera {
namespace {

constexpr int64_t kTensorBytes = int64_t{64} << 20;
constexpr int64_t kTensors = 16;

/// Prints the throughput of `f` over `bytes` bytes, the fastest of a few calls.
template <class F>
void report(const char* what, int64_t bytes, int repeats, F f) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    f();
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    best = std::min(best, spent.count());
  }
  std::printf("%-28s %8.2f GB/s\n", what, static_cast<double>(bytes) / best * 1e-9);
}

void bench_checksums(std::span<const std::byte> data) {
  const auto bytes = std::ssize(data);
  uint64_t sum = 0;
  std::vector<std::byte> copy(data.size());
  report("copy", bytes, 5, [&] { std::memcpy(copy.data(), data.data(), data.size()); });
  report("crc32c", bytes, 5, [&] { sum += crc32c(data); });
  report("crc32c, portable", bytes, 2, [&] { sum += crc32c_portable(data); });
  report("xxh3-128", bytes, 5, [&] { sum += hash128(data).size(); });
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Shape shape{bytes / size_of(dtype)};
    report(dtype == DType::kF32 ? "digest of f32" : "digest of bf16", bytes, 3,
           [&] { sum += digest(dtype, shape, whole_box(shape), 0, data); });
  }
  std::printf("(%llu)\n", static_cast<unsigned long long>(sum));
}

void bench_store(const std::filesystem::path& directory, std::vector<NamedTensor>& tensors) {
  const int64_t bytes = kTensors * kTensorBytes;
  CheckpointStore store(directory, {});
  CheckpointContents contents;
  contents.groups = {{TensorKind::kParameter, tensors}};
  std::filesystem::path path;
  for (int64_t step = 1; step <= 3; ++step) {
    contents.step = step;
    const SaveReport saved = store.save(contents);
    CHECK(saved.committed, saved.failure);
    path = saved.path;
    std::printf("%-28s %8.2f GB/s, commit %.1f ms\n", "save, durable",
                static_cast<double>(bytes) / (saved.write_seconds + saved.commit_seconds) * 1e-9,
                1000 * saved.commit_seconds);
  }
  const CheckpointReader reader(path);
  report("load", bytes, 3, [&] { reader.read(TensorKind::kParameter, tensors); });
  report("verify", bytes, 3, [&] { verify_checkpoint(reader); });
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  using tessera::Buffer;
  using tessera::Device;
  if (argc != 2) return 2;
  std::vector<Buffer> buffers;
  std::vector<tessera::NamedTensor> tensors;
  const tessera::Shape shape{4096, tessera::kTensorBytes / 4096 / 4};
  for (int64_t i = 0; i < tessera::kTensors; ++i) {
    buffers.emplace_back(Device{}, tessera::kTensorBytes);
    const tessera::TensorView view = buffers.back().view(tessera::DType::kF32, shape);
    for (size_t k = 0; k < view.as<float>().size(); ++k) {
      view.as<float>()[k] = static_cast<float>(k % 1009) * 0.001F;
    }
    tensors.push_back({tessera::concat("x", i), tessera::Shard::replicated(shape), view});
  }
  tessera::bench_checksums({static_cast<const std::byte*>(tensors[0].data.data()),
                            static_cast<size_t>(tessera::kTensorBytes)});
  tessera::bench_store(argv[1], tensors);
  return 0;
}
