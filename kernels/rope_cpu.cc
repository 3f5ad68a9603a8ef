#include <array>
#include <cmath>

#include "kernels/core/grain.h"
#include "kernels/core/simd.h"
#include "kernels/rope.h"

namespace tessera::cpu {

namespace {

constexpr int64_t kMaxHalf = kRopeMaxDim / 2;
constexpr double kHalfPi = 1.5707963267948966;

/// Sines and cosines of one token, shared by its heads.
struct Angles {
  std::array<float, kMaxHalf> sine;
  std::array<float, kMaxHalf> cosine;
};

// The angle is a product in double, counted in quarter turns, so that a position of a million keeps
// full precision after whole turns are dropped. The polynomials are Taylor's on [-pi/4, pi/4]
// (error 3e-7); nothing branches, so the loop vectorises.
void fill_angles(Angles& angles, const double* quarter_turns, int64_t half, double position) {
  constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to whole numbers
  float* const sine = angles.sine.data();
  float* const cosine = angles.cosine.data();
  for (int64_t i = 0; i < half; ++i) {
    const double turns = position * quarter_turns[i];
    const double shifted = turns + kRounder;
    const auto quadrant = static_cast<uint32_t>(std::bit_cast<uint64_t>(shifted));
    const auto r = static_cast<float>((turns - (shifted - kRounder)) * kHalfPi);
    const float r2 = r * r;
    const float s = r + r * r2 * (-1.0f / 6 + r2 * (1.0f / 120 - r2 * (1.0f / 5040)));
    const float c = 1 - r2 * (0.5f - r2 * (1.0f / 24 - r2 * (1.0f / 720 - r2 * (1.0f / 40320))));
    const bool odd = (quadrant & 1) != 0;
    const uint32_t sine_sign = (quadrant & 2) << 30;
    const uint32_t cosine_sign = ((quadrant + 1) & 2) << 30;
    sine[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(odd ? c : s) ^ sine_sign);
    cosine[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(odd ? s : c) ^ cosine_sign);
  }
}

template <class T>
void rotate(T* x, const Angles& angles, int64_t half, float direction) {
  for_lanes(half, [&](int64_t i, int64_t lanes) {
    const F32x16 sine = load_first(angles.sine.data() + i, lanes) * direction;
    const F32x16 cosine = load_first(angles.cosine.data() + i, lanes);
    const F32x16 low = load_first(x + i, lanes);
    const F32x16 high = load_first(x + half + i, lanes);
    store_first(x + i, low * cosine - high * sine, lanes);
    store_first(x + half + i, high * cosine + low * sine, lanes);
  });
}

}  // namespace

void rope(ThreadPool& threads, const Rope& a) {
  const int64_t tokens = a.x.shape()[0];
  const int64_t heads = a.x.shape()[1];
  const int64_t d = a.x.shape()[2];
  const int64_t half = d / 2;
  const float direction = a.inverse ? -1 : 1;
  std::array<double, kMaxHalf> quarter_turns;  // per position
  for (int64_t i = 0; i < half; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(d);
    quarter_turns[static_cast<size_t>(i)] = std::pow(double{a.base}, exponent) / kHalfPi;
  }
  const auto positions = a.positions.as<int32_t>();
  with_float_type(a.x.dtype(), [&]<class T>() {
    T* const x = a.x.as<T>().data();
    threads.for_ranges(tokens, row_grain(heads * d), [&, x](int64_t begin, int64_t end) {
      Angles angles;
      for (int64_t t = begin; t < end; ++t) {
        fill_angles(angles, quarter_turns.data(), half, positions[static_cast<size_t>(t)]);
        for (int64_t head = 0; head < heads; ++head) {
          rotate(x + (t * heads + head) * d, angles, half, direction);
        }
      }
    });
  });
}

}  // namespace tessera::cpu
