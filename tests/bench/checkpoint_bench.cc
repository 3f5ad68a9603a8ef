#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/crc32c.h"
#include "checkpoint/digest.h"
#include "checkpoint/file_hash.h"
#include "checkpoint/saver.h"
#include "checkpoint/verify.h"
#include "kernels/core/buffer.h"
#include "kernels/matmul.h"
#include "parallel/self_communicator.h"

// Checksums in memory; in the directory given a save, a load and a full check of 1 GiB; and saves
// in the background, beside what they compete with. checkpoint_bench DIRECTORY

namespace tessera {
namespace {

constexpr int64_t kTensorBytes = int64_t{64} << 20;
constexpr int64_t kTensors = 16;

std::span<const std::byte> bytes_in(const NamedTensor& tensor) {
  return {static_cast<const std::byte*>(tensor.data.data()),
          static_cast<size_t>(tensor.data.bytes())};
}

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

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

/// As dd conv=fsync does it: one file, 8 MiB at a time, durable at the end.
double plain_write(const std::filesystem::path& path, std::span<const std::byte> data,
                   int64_t repeats) {
  const double spent = seconds_of([&] {
    const Directory directory(path.parent_path());
    File file = directory.create(path.filename());
    int64_t at = 0;
    for (int64_t i = 0; i < repeats; ++i) {
      for (size_t done = 0; done < data.size(); done += size_t{8} << 20) {
        const auto piece = data.subspan(done, std::min(data.size() - done, size_t{8} << 20));
        file.write_at(piece, at);
        at += std::ssize(piece);
      }
    }
    file.sync();
    file.close();
  });
  std::filesystem::remove(path);
  return spent;
}

/// Something to do for one thread, at the speed of the processor.
class Work {
 public:
  void step() {
    matmul(stream_, {.c = c_.view(DType::kF32, shape_),
                     .a = a_.view(DType::kF32, shape_),
                     .b = b_.view(DType::kF32, shape_)});
  }

 private:
  const Shape shape_{768, 768};
  Stream stream_{Device{}, 1};
  Buffer a_{Device{}, shape_.elements() * 4};
  Buffer b_{Device{}, shape_.elements() * 4};
  Buffer c_{Device{}, shape_.elements() * 4};
};

/// Saves while one thread computes; the other core is free for the writer.
void bench_background(const std::filesystem::path& directory,
                      const std::vector<NamedTensor>& tensors) {
  constexpr int kSaves = 100;
  SelfCommunicator world;
  CheckpointStore store(directory, {});
  CheckpointSaver saver(world, &store, {});
  Stream stream(Device{}, 2);
  CheckpointContents contents;
  contents.groups = {{TensorKind::kParameter, tensors}};
  const double bytes = static_cast<double>(kTensors * kTensorBytes);
  saver.reserve(stream, contents);
  Snapshot copy;
  (void)copy.take(stream, contents);
  Work work;
  std::vector<double> copies, stalls, rates, plain, calm, busy;
  for (int64_t step = 1; step <= kSaves; ++step) {
    contents.step = step;
    for (int i = 0; i < 20; ++i) calm.push_back(seconds_of([&] { work.step(); }));
    copies.push_back(seconds_of([&] { (void)copy.take(stream, contents); }));
    std::optional<SaveReport> report;
    saver.start(stream, contents);
    while (!report) {
      busy.push_back(seconds_of([&] { work.step(); }));
      report = saver.advance(saver.votes());
    }
    CHECK(report->committed, report->failure);
    stalls.push_back(report->stall_seconds);
    rates.push_back(bytes / (report->write_seconds + report->commit_seconds));
    if (step % 10 != 0) continue;
    plain.push_back(bytes / plain_write(directory / "plain", bytes_in(tensors[0]), kTensors));
  }
  const auto ms = [](double seconds) { return 1000 * seconds; };
  std::printf("copy with 2 threads          median %6.1f ms, p99 %6.1f ms\n",
              ms(quantile(copies, 0.5)), ms(quantile(copies, 0.99)));
  std::printf("training waits for a save    median %6.1f ms, p99 %6.1f ms: %.2f of the copy's\n",
              ms(quantile(stalls, 0.5)), ms(quantile(stalls, 0.99)),
              quantile(stalls, 0.99) / quantile(copies, 0.99));
  std::printf("step alone                   median %6.2f ms\n", ms(quantile(calm, 0.5)));
  std::printf("step while a save is written median %6.2f ms: %+.1f%%\n", ms(quantile(busy, 0.5)),
              100 * (quantile(busy, 0.5) / quantile(calm, 0.5) - 1));
  std::printf(
      "save, durable and committed  median %6.2f GB/s; plain write with sync %.2f GB/s: "
      "%.2f of it\n",
      quantile(rates, 0.5) / 1e9, quantile(plain, 0.5) / 1e9,
      quantile(rates, 0.5) / quantile(plain, 0.5));
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
  tessera::bench_store(std::filesystem::path(argv[1]) / "blocking", tensors);
  tessera::bench_background(std::filesystem::path(argv[1]) / "background", tensors);
  return 0;
}
