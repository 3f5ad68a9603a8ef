#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/core/device.h"
#include "kernels/core/random.h"

namespace tessera {

/// What a program of measurements on a GPU was asked for.
struct GpuBenchOptions {
  std::vector<std::string> groups;  ///< of its measurements; empty: all
  bool quick = false;               ///< what matters most, fewer repeats
  bool dry_run = false;             ///< no GPU: all shapes are checked, nothing is measured
  bool tiny = false;                ///< shapes that the interpreter of the tests gets through

  bool wants(const std::string& group) const;
};

/// One thing to measure. bytes: what the contract of the kernel must read and write once. flops: of
/// the products that it needs. 0: none to speak of.
struct GpuWork {
  std::string name;
  std::string shape;
  DType dtype;
  double bytes = 0;
  double flops = 0;
  std::function<void()> call;  ///< gives the work to the stream
  bool graph = false;          ///< as one graph: for many short kernels, which decoding is
  std::string note = {};       ///< for the reader
};

/// Measures work on GPU 0 by its own clock, and prints one line of JSON for each. The rate of a
/// copy and of a large matrix product are measured first, for the others to be compared with.
///
/// Before each call a buffer is read that fills the L2 cache, so that inputs come from memory; the
/// host notes down the whole call meanwhile, so that gaps between kernels are the GPU's own. A time
/// is the median of many calls after a warm-up.
class GpuBench {
 public:
  explicit GpuBench(const GpuBenchOptions& options);

  Stream& stream() { return stream_; }
  const GpuBenchOptions& options() const { return options_; }
  Device device() const { return stream_.device(); }
  /// `full`, or `tiny` in a run of tiny shapes.
  int64_t size(int64_t full, int64_t tiny) const { return options_.tiny ? tiny : full; }

  /// Normal numbers, made on the host: some millions, and then they repeat.
  const std::vector<float>& normals();
  /// Microseconds; 0 in a dry run. Negative when it failed: the line then says why. A call that
  /// took no longer than none fails too, because there was no kernel.
  double run(const GpuWork& work);
  /// A line for work that could not even be prepared.
  void print_failure(const std::string& name, const std::string& shape, const std::string& why);
  /// Calls `prepare_and_run`, and prints a failure of it as the one of `group`, if it is wanted.
  void group(const std::string& name, const std::function<void()>& prepare_and_run);
  /// The exit code: 0 when nothing failed.
  int end() const { return failures_ == 0 ? 0 : 1; }

 private:
  void measure_rates();
  double timed(const std::function<void()>& call, int* calls);
  double median_of(const std::function<void()>& call, int calls);
  void print(const GpuWork& work, double us, int calls) const;

  GpuBenchOptions options_;
  Stream stream_;
  Buffer cache_filler_;
  Buffer sum_;
  std::vector<float> normals_;
  double empty_us_ = 0;
  double copy_gbps_ = 0;
  double matmul_tflops_ = 0;
  int failures_ = 0;
};

/// Tensors in the GPU's own memory. In a dry run they have shapes only.
class GpuTensors {
 public:
  explicit GpuTensors(GpuBench& bench) : bench_(bench) {}

  TensorView zeros(DType dtype, Shape shape);
  /// scale * normal numbers, f32 or bf16.
  TensorView random(DType dtype, Shape shape, double scale = 1);
  /// Whole numbers in [low, high).
  TensorView ints(Shape shape, int32_t low, int32_t high);
  template <class T>
  TensorView from(Shape shape, const std::vector<T>& values) {
    return upload(kDTypeOf<T>, shape, values.data(), std::ssize(values));
  }

 private:
  TensorView upload(DType dtype, Shape shape, const void* values, int64_t count);

  GpuBench& bench_;
  std::vector<Buffer> memory_;
  uint64_t seed_ = 1;
};

/// The options of a program, or ends it with a word on how to use it. `groups`: those it has.
GpuBenchOptions gpu_bench_options(int count, char** arguments, std::span<const char* const> groups);

/// "32k" for 32768.
std::string thousands(int64_t tokens);

}  // namespace tessera
