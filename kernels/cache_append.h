#pragma once

#include <span>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Puts keys or values of new tokens into the caches of their sequences:
///   cache[c, places[t], rows[t], :] = x[t, groups[c], :];  a token with a row of -1 is left out.
/// No two tokens are put in one place and row. A place or a row outside of the cache throws on the
/// CPU; a GPU stops.
struct CacheAppend {
  TensorView cache;        ///< in and out [groups, sequences, rows, d]; other rows are not touched
  ConstTensorView x;       ///< [tokens, kv_heads, d], dtype of cache
  ConstTensorView places;  ///< [tokens], i32: the sequence of each
  ConstTensorView rows;    ///< [tokens], i32
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
