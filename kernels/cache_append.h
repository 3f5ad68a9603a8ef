#pragma once

#include <span>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Puts the keys or values of one new token of each sequence into a cache:
///   cache[c, s, rows[s], :] = x[s, groups[c], :].
/// A row outside of the cache throws on the CPU; a GPU stops.
struct CacheAppend {
  TensorView cache;      ///< in and out [groups, sequences, rows, d]; other rows are not touched
  ConstTensorView x;     ///< [sequences, kv_heads, d], dtype of cache
  ConstTensorView rows;  ///< [sequences], i32
  std::span<const int32_t> groups;
};
void cache_append(Stream& stream, const CacheAppend& a);

namespace cpu {
void cache_append(ThreadPool& threads, const CacheAppend& a);
}
namespace gpu {
void cache_append(Stream& stream, const CacheAppend& a);
}

}  // namespace tessera
