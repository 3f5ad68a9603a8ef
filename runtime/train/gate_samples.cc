#include "runtime/train/gate_samples.h"

#include <algorithm>
#include <cmath>

namespace tessera {

std::vector<GateSample> gate_samples(int64_t rows, int64_t sequences, int64_t length,
                                     int64_t step) {
  // Multiples of the golden ratio, without their whole part, lie evenly however many there are.
  constexpr double kGolden = 0.6180339887498949;
  const double turns = static_cast<double>(step) * kGolden;
  const double shift = turns - std::floor(turns);
  const int64_t count = std::min(rows, sequences * length);
  std::vector<GateSample> samples;
  for (int64_t i = 0; i < count; ++i) {
    const double place = (static_cast<double>(i) + shift) / static_cast<double>(count);
    const auto position = static_cast<int64_t>(place * static_cast<double>(length));
    samples.push_back({(i + step) % sequences, std::min(position, length - 1)});
  }
  return samples;
}

}  // namespace tessera
