#include "tests/bench/gpu_bench.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "kernels/core/copy.h"
#include "kernels/core/event.h"
#include "kernels/core/work_graph.h"
#include "kernels/matmul.h"
#include "kernels/reduce.h"

namespace tessera {

namespace {

/// More than the L2 cache of any GPU.
constexpr int64_t kCacheFiller = int64_t{256} << 20;
/// Not a multiple of a row of any tensor, so that rows differ too.
constexpr int64_t kNormals = (int64_t{4} << 20) + 8;
/// A pair of events with nothing in between takes a moment too, and not always the same.
constexpr double kNothingUs = 0.5;

Device device_of(const GpuBenchOptions& options) {
  return {options.dry_run ? DeviceKind::kPlan : DeviceKind::kGpu};
}

std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') json += '\\';
    json += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return json + "\"";
}

std::string number(const char* name, double value) {
  char text[96];
  std::snprintf(text, sizeof(text), ", \"%s\": %.6g", name, value);
  return text;
}

}  // namespace

bool GpuBenchOptions::wants(const std::string& group) const {
  return groups.empty() || std::ranges::find(groups, group) != groups.end();
}

GpuBench::GpuBench(const GpuBenchOptions& options)
    : options_(options),
      stream_(device_of(options)),
      cache_filler_(device_of(options), size(kCacheFiller, 4096)),
      sum_(device_of(options), Buffer::kAlignment) {
  measure_rates();
}

const std::vector<float>& GpuBench::normals() {
  if (!normals_.empty()) return normals_;
  normals_.resize(static_cast<size_t>(size(kNormals, 4096)));
  for (size_t i = 0; i < normals_.size(); i += 2) {
    const auto words = philox(1, 0, i);
    normals_[i] = static_cast<float>(normal(words[0], words[1]));
    normals_[i + 1] = static_cast<float>(normal(words[2], words[3]));
  }
  return normals_;
}

void GpuBench::measure_rates() {
  if (!options_.dry_run) empty_us_ = median_of([] {}, size(50, 1));
  GpuTensors tensors(*this);
  const Shape large{size(int64_t{256} << 20, 1024)};
  const TensorView from = tensors.random(DType::kF32, large);
  const TensorView to = tensors.zeros(DType::kF32, large);
  const auto bytes = 2 * static_cast<double>(from.bytes());
  const double copy_us = run({.name = "copy",
                              .shape = concat(large),
                              .dtype = DType::kF32,
                              .bytes = bytes,
                              .call = [&] { copy(stream_, from, to); },
                              .note = "this GPU's own rate, for comparison"});
  if (copy_us > 0) copy_gbps_ = bytes / copy_us * 1e-3;
  const int64_t n = size(8192, 32);
  const TensorView a = tensors.random(DType::kBF16, {n, n});
  const TensorView b = tensors.random(DType::kBF16, {n, n});
  const TensorView c = tensors.zeros(DType::kBF16, {n, n});
  const auto side = static_cast<double>(n);
  const double flops = 2 * side * side * side;
  const double product_us =
      run({.name = "matmul_rate",
           .shape = concat(n, " x ", n, " x ", n),
           .dtype = DType::kBF16,
           .flops = flops,
           .call = [&] { matmul(stream_, {.c = c, .a = a, .b = b, .transpose_b = true}); },
           .note = "this GPU's own rate, for comparison"});
  if (product_us > 0) matmul_tflops_ = flops / product_us * 1e-6;
}

double GpuBench::median_of(const std::function<void()>& call, int calls) {
  const TensorView filler =
      cache_filler_.view(DType::kF32, {cache_filler_.bytes() / int64_t{sizeof(float)}});
  const TensorView sum = sum_.view(DType::kF64, {1});
  std::vector<Event> begins;
  std::vector<Event> ends;
  for (int i = 0; i < calls; ++i) {
    begins.emplace_back(device(), /*timed=*/true);
    ends.emplace_back(device(), /*timed=*/true);
  }
  for (size_t i = 0; i < begins.size(); ++i) {
    add_sum(stream_, {.total = sum, .x = filler});
    begins[i].record(stream_);
    call();
    ends[i].record(stream_);
  }
  stream_.synchronize();
  std::vector<double> us;
  for (size_t i = 0; i < begins.size(); ++i) {
    us.push_back(1e3 * ends[i].milliseconds_since(begins[i]));
  }
  std::ranges::sort(us);
  return us[us.size() / 2];
}

double GpuBench::timed(const std::function<void()>& call, int* calls) {
  *calls = 1;
  if (options_.tiny) return median_of(call, 1);
  const double first_us = median_of(call, 2);
  // Tenths of a second for each line, the filling of the cache aside.
  const double budget_us = options_.quick ? 1e5 : 3e5;
  if (first_us > budget_us) {
    *calls = 2;
    return first_us;
  }
  *calls = static_cast<int>(std::clamp(budget_us / std::max(first_us, 1.0), 3.0, 100.0));
  return median_of(call, *calls);
}

double GpuBench::run(const GpuWork& work) {
  try {
    work.call();  // also what is done at a first call alone
    stream_.synchronize();
    if (options_.dry_run) {
      print(work, 0, 0);
      return 0;
    }
    std::optional<WorkGraph> graph;
    if (work.graph) {
      graph.emplace(stream_, work.call);
      graph->run();
    }
    int calls = 0;
    const double us = graph ? timed([&] { graph->run(); }, &calls) : timed(work.call, &calls);
    CHECK(options_.tiny || us > empty_us_ + kNothingUs, "it took ", us, " us, and nothing takes ",
          empty_us_, " us: there is no kernel");
    print(work, us, calls);
    return us;
  } catch (const std::exception& error) {
    print_failure(work.name, work.shape, error.what());
    return -1;
  }
}

void GpuBench::print(const GpuWork& work, double us, int calls) const {
  std::string line =
      concat("{\"by\": \"tessera\", \"name\": ", quoted(work.name),
             ", \"shape\": ", quoted(work.shape), ", \"dtype\": \"", name_of(work.dtype), "\"",
             number("microseconds", us), ", \"calls\": ", calls);
  if (work.bytes > 0) line += number("bytes", work.bytes);
  if (work.flops > 0) line += number("flops", work.flops);
  if (us > 0 && work.bytes > 0) {
    const double gbps = work.bytes / us * 1e-3;
    line += number("gbps", gbps);
    if (copy_gbps_ > 0) line += number("percent_of_copy", 100 * gbps / copy_gbps_);
  }
  if (us > 0 && work.flops > 0) {
    const double tflops = work.flops / us * 1e-6;
    line += number("tflops", tflops);
    if (matmul_tflops_ > 0) line += number("percent_of_matmul", 100 * tflops / matmul_tflops_);
  }
  if (!work.note.empty()) line += concat(", \"note\": ", quoted(work.note));
  std::printf("%s}\n", line.c_str());
  std::fflush(stdout);
}

void GpuBench::print_failure(const std::string& name, const std::string& shape,
                             const std::string& why) {
  ++failures_;
  std::printf("{\"by\": \"tessera\", \"name\": %s, \"shape\": %s, \"error\": %s}\n",
              quoted(name).c_str(), quoted(shape).c_str(), quoted(why).c_str());
  std::fflush(stdout);
}

void GpuBench::group(const std::string& name, const std::function<void()>& prepare_and_run) {
  if (!options_.wants(name)) return;
  try {
    prepare_and_run();
  } catch (const std::exception& error) {
    print_failure(name, "", error.what());
  }
}

TensorView GpuTensors::zeros(DType dtype, Shape shape) {
  memory_.emplace_back(bench_.device(), shape.elements() * size_of(dtype));
  return memory_.back().view(dtype, shape);
}

TensorView GpuTensors::upload(DType dtype, Shape shape, const void* values, int64_t count) {
  const TensorView to = zeros(dtype, shape);
  CHECK(count == shape.elements(), "upload: ", count, " values for ", shape);
  if (bench_.options().dry_run) return to;
  copy(bench_.stream(), {values, dtype, shape, Device{}}, to);
  bench_.stream().synchronize();
  return to;
}

TensorView GpuTensors::random(DType dtype, Shape shape, double scale) {
  const TensorView x = zeros(dtype, shape);
  if (bench_.options().dry_run) return x;
  const std::vector<float>& normals = bench_.normals();
  const int64_t count = std::min(x.elements(), std::ssize(normals));
  std::vector<float> scaled(static_cast<size_t>(count));
  std::vector<BF16> rounded(dtype == DType::kBF16 ? scaled.size() : 0);
  const size_t shift = 10007 * seed_++;  // so that no two tensors are alike
  for (size_t i = 0; i < scaled.size(); ++i) {
    scaled[i] = static_cast<float>(scale) * normals[(i + shift) % normals.size()];
  }
  for (size_t i = 0; i < rounded.size(); ++i) rounded[i] = from_float<BF16>(scaled[i]);
  const void* const values =
      dtype == DType::kBF16 ? static_cast<void*>(rounded.data()) : scaled.data();
  const TensorView flat = x.reshape({x.elements()});
  copy(bench_.stream(), {values, dtype, {count}, Device{}}, flat.rows(0, count));
  // Then twice as many with every copy.
  for (int64_t done = count; done < x.elements();) {
    const int64_t more = std::min(done, x.elements() - done);
    copy(bench_.stream(), flat.rows(0, more), flat.rows(done, more));
    done += more;
  }
  bench_.stream().synchronize();
  return x;
}

TensorView GpuTensors::ints(Shape shape, int32_t low, int32_t high) {
  std::vector<int32_t> values(static_cast<size_t>(shape.elements()), low);
  const uint64_t seed = seed_++;
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] += static_cast<int32_t>(philox(seed, 1, i)[0] % static_cast<uint32_t>(high - low));
  }
  return from(shape, values);
}

GpuBenchOptions gpu_bench_options(int count, char** arguments,
                                  std::span<const char* const> groups) {
  GpuBenchOptions options;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument == "--quick") {
      options.quick = true;
    } else if (argument == "--dry-run") {
      options.dry_run = true;
    } else if (argument == "--tiny") {
      options.tiny = true;
    } else if (std::ranges::find(groups, argument) != groups.end()) {
      options.groups.push_back(argument);
    } else {
      std::string known;
      for (const char* group : groups) known += concat(" [", group, "]");
      std::fprintf(stderr, "usage: %s [--quick] [--dry-run] [--tiny]%s\n", arguments[0],
                   known.c_str());
      std::exit(2);
    }
  }
  return options;
}

std::string thousands(int64_t tokens) {
  return tokens % 1024 == 0 ? concat(tokens / 1024, "k") : concat(tokens);
}

}  // namespace tessera
