#pragma once

#include <span>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Puts the keys or values of one new token into a cache:
///   cache[c, row, :] = x[0, groups[c], :].
struct CacheAppend {
  TensorView cache;   ///< in and out [groups, rows, d]; other rows are not touched
  ConstTensorView x;  ///< [1, kv_heads, d], dtype of cache
  std::span<const int32_t> groups;
  int64_t row;
};
void cache_append(Stream& stream, const CacheAppend& a);

namespace cpu {
void cache_append(ThreadPool& threads, const CacheAppend& a);
}
namespace gpu {
void cache_append(Stream& stream, const CacheAppend& a);
}

}  // namespace tessera
