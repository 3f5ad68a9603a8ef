#include <cstring>

#include "kernels/cache_append.h"

namespace tessera::cpu {

void cache_append(ThreadPool&, const CacheAppend& a) {
  const int64_t sequences = a.cache.shape()[1];
  const int64_t rows = a.cache.shape()[2];
  const int64_t heads = a.x.shape()[1];
  const int64_t row_bytes = a.cache.shape()[3] * size_of(a.cache.dtype());
  const auto row_of = a.rows.as<int32_t>();
  for (const int32_t row : row_of) {
    CHECK(row >= 0 && row < rows, "cache_append: row is ", row, ", expected 0 to ", rows - 1);
  }
  auto* to = static_cast<char*>(a.cache.data());
  const auto* from = static_cast<const char*>(a.x.data());
  for (int64_t s = 0; s < sequences; ++s) {
    for (size_t c = 0; c < a.groups.size(); ++c) {
      const int64_t place = static_cast<int64_t>(c) * sequences + s;
      std::memcpy(to + (place * rows + row_of[static_cast<size_t>(s)]) * row_bytes,
                  from + (s * heads + a.groups[c]) * row_bytes, static_cast<size_t>(row_bytes));
    }
  }
}

}  // namespace tessera::cpu
