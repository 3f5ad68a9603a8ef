#include <cstring>

#include "kernels/cache_append.h"

namespace tessera::cpu {

void cache_append(ThreadPool&, const CacheAppend& a) {
  const int64_t sequences = a.cache.shape()[1];
  const int64_t rows = a.cache.shape()[2];
  const int64_t heads = a.x.shape()[1];
  const int64_t row_bytes = a.cache.shape()[3] * size_of(a.cache.dtype());
  const auto place_of = a.places.as<int32_t>();
  const auto row_of = a.rows.as<int32_t>();
  for (const int32_t place : place_of) {
    CHECK(place >= 0 && place < sequences, "cache_append: place is ", place, ", expected 0 to ",
          sequences - 1);
  }
  for (const int32_t row : row_of) {
    CHECK(row >= -1 && row < rows, "cache_append: row is ", row, ", expected -1 to ", rows - 1);
  }
  auto* to = static_cast<char*>(a.cache.data());
  const auto* from = static_cast<const char*>(a.x.data());
  for (size_t t = 0; t < row_of.size(); ++t) {
    if (row_of[t] < 0) continue;
    for (size_t c = 0; c < a.groups.size(); ++c) {
      const int64_t place = static_cast<int64_t>(c) * sequences + place_of[t];
      const int64_t head = static_cast<int64_t>(t) * heads + a.groups[c];
      std::memcpy(to + (place * rows + row_of[t]) * row_bytes, from + head * row_bytes,
                  static_cast<size_t>(row_bytes));
    }
  }
}

}  // namespace tessera::cpu
