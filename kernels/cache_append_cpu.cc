#include <cstring>

#include "kernels/cache_append.h"

namespace tessera::cpu {

void cache_append(ThreadPool&, const CacheAppend& a) {
  const int64_t rows = a.cache.shape()[1];
  const int64_t row_bytes = a.cache.shape()[2] * size_of(a.cache.dtype());
  auto* to = static_cast<char*>(a.cache.data());
  const auto* from = static_cast<const char*>(a.x.data());
  for (size_t c = 0; c < a.groups.size(); ++c) {
    std::memcpy(to + (static_cast<int64_t>(c) * rows + a.row) * row_bytes,
                from + a.groups[c] * row_bytes, static_cast<size_t>(row_bytes));
  }
}

}  // namespace tessera::cpu
