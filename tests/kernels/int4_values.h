#pragma once

#include <vector>

#include "kernels/int4_weights.h"
#include "tests/support/random_tensor.h"

namespace tessera::support {

/// Weights that quantize_int4 made.
class Int4 {
 public:
  explicit Int4(ConstTensorView w)
      : codes_(DType::kU8, w.shape().with(2, w.shape()[2] / 2)),
        scales_(DType::kBF16, {w.shape()[0], w.shape()[1], w.shape()[2] / 64, 2}) {
    Stream host{Device{}};
    quantize_int4(host, {codes_, scales_, w});
  }
  Int4Weights view() const { return {codes_.view(), scales_.view()}; }

 private:
  Tensor codes_, scales_;
};

/// The numbers [groups, n, k] that 4 bits stand for, by the words of Int4Weights.
inline std::vector<double> int4_values(const Int4Weights& w) {
  const int64_t runs = w.groups() * w.n() * w.k() / 64;
  std::vector<double> values(static_cast<size_t>(64 * runs));
  for (int64_t run = 0; run < runs; ++run) {
    const double scale = to_float(w.scales.as<BF16>()[static_cast<size_t>(2 * run)]);
    const double offset = to_float(w.scales.as<BF16>()[static_cast<size_t>(2 * run + 1)]);
    for (int64_t byte = 0; byte < 32; ++byte) {
      const int codes = w.codes.as<uint8_t>()[static_cast<size_t>(32 * run + byte)];
      constexpr int64_t kPlaces[] = {0, 2, 1, 3};
      const auto at = static_cast<size_t>(64 * run + byte / 4 * 4 + kPlaces[byte % 4]);
      values[at] = scale * (codes % 16 - 8) + offset;
      values[at + 32] = scale * (codes / 16 - 8) + offset;
    }
  }
  return values;
}

}  // namespace tessera::support
