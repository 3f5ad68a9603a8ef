#include "kernels/int4_weights.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/core/expect_tensor.h"
#include "kernels/core/thread_pool.h"

namespace tessera {

namespace {

constexpr int64_t kRun = Int4Weights::kRun;
using Run = std::array<float, kRun>;

/// What a run is stored as, and how far that is from it.
struct Quantized {
  BF16 scale;
  BF16 offset;
  std::array<float, kRun> codes;                         // whole numbers -8 .. 7
  float error = std::numeric_limits<float>::infinity();  // sum of squares
};

/// The nearest codes for this scale and offset.
Quantized with(const Run& w, float scale, float offset) {
  Quantized to{from_float<BF16>(scale), from_float<BF16>(offset), {}, 0};
  const float s = to_float(to.scale);
  const float m = to_float(to.offset);
  const float inverse = s > 0 ? 1 / s : 0;
  for (size_t i = 0; i < w.size(); ++i) {
    const float code = std::clamp(std::nearbyint((w[i] - m) * inverse), -8.0f, 7.0f);
    const float difference = w[i] - (s * code + m);
    to.codes[i] = code;
    to.error += difference * difference;
  }
  return to;
}

/// The scale and offset of least squares for codes that are there, and the codes nearest to those.
Quantized refitted(const Run& w, const Quantized& before) {
  double codes = 0, squares = 0, sum = 0, products = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    const double code = before.codes[i];
    codes += code;
    squares += code * code;
    sum += w[i];
    products += code * w[i];
  }
  const double spread = squares - codes * codes / kRun;
  if (spread <= 0) return before;
  const double scale = (products - codes * sum / kRun) / spread;
  if (scale <= 0) return before;
  return with(w, static_cast<float>(scale), static_cast<float>((sum - scale * codes) / kRun));
}

Quantized best_of(const Run& w) {
  const auto [lowest, highest] = std::ranges::minmax(w);
  bool finite = true;
  for (const float x : w) finite = finite && std::isfinite(x);
  if (!finite) {
    return {BF16{}, from_float<BF16>(std::numeric_limits<float>::quiet_NaN()), {}, 0};
  }
  Quantized best;
  for (const float part : {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f, 0.65f}) {
    const float scale = part * (highest - lowest) / 15;
    // Code -8 is the lower end of the range about the middle.
    const float offset = (highest + lowest) / 2 + scale / 2;
    const Quantized plain = with(w, scale, offset);
    for (const Quantized& one : {plain, refitted(w, plain)}) {
      if (one.error < best.error) best = one;
    }
  }
  return best;
}

void store(const Quantized& run, uint8_t* codes, BF16* scales) {
  for (int64_t byte = 0; byte < kRun / 2; ++byte) {
    const auto low = static_cast<size_t>(int4_number(byte));
    const auto code = [&](size_t i) { return static_cast<unsigned>(run.codes[i] + 8); };
    codes[byte] = static_cast<uint8_t>(code(low) | code(low + kRun / 2) << 4);
  }
  scales[0] = run.scale;
  scales[1] = run.offset;
}

}  // namespace

Int4Weights Int4Weights::rows(int64_t first, int64_t count) const {
  CHECK(groups() == 1, "int4 weights: rows of ", groups(), " groups, expected 1");
  const auto some = [&](const ConstTensorView& all) {
    const Shape& shape = all.shape();
    const Shape flat{shape[1], shape.elements() / shape[1]};
    return all.reshape(flat).rows(first, count).reshape(shape.with(1, count));
  };
  return {some(codes), some(scales)};
}

void check_int4(const Int4Weights& w, int64_t groups, int64_t n, int64_t k, const char* who) {
  CHECK(k > 0 && k % kRun == 0, who, ": k is ", k, ", expected a multiple of ", kRun);
  expect_tensor(w.codes, DType::kU8, {groups, n, k / 2}, concat(who, ": codes").c_str(),
                "[groups, n, k / 2]");
  expect_tensor(w.scales, DType::kBF16, {groups, n, k / kRun, 2}, concat(who, ": scales").c_str(),
                "[groups, n, k / 64, 2]");
}

void quantize_int4(Stream& stream, const QuantizeInt4& a) {
  expect_floats(a.w, 3, "quantize_int4: w", "[groups, n, k]");
  const Shape& shape = a.w.shape();
  check_int4({a.codes, a.scales}, shape[0], shape[1], shape[2], "quantize_int4");
  CHECK(stream.on(DeviceKind::kCpu), "quantize_int4: the stream is not on the CPU");
  const int64_t runs = shape.elements() / kRun;
  with_float_type(a.w.dtype(), [&]<class T>() {
    stream.threads().for_ranges(runs, 256, [&](int64_t begin, int64_t end) {
      for (int64_t run = begin; run < end; ++run) {
        const T* const from = a.w.as<T>().data() + run * kRun;
        Run w;
        for (size_t i = 0; i < w.size(); ++i) w[i] = to_float(from[i]);
        store(best_of(w), a.codes.as<uint8_t>().data() + run * kRun / 2,
              a.scales.as<BF16>().data() + 2 * run);
      }
    });
  });
}

}  // namespace tessera
