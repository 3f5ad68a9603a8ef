#pragma once

#include <span>

#include "kernels/grouped_matmul.h"
#include "kernels/matmul.h"

namespace tessera::bench {

/// What grouped_matmul is measured against: a product of its own per group, on several streams in
/// turn. The host has to know the offsets, for which a training step would have to wait. Each
/// stream has to have waited for the inputs; nobody waits for the outputs here.
inline void multiply_groups_on_streams(std::span<Stream* const> streams, const GroupedMatmul& a,
                                       std::span<const int32_t> offsets) {
  const Shape& b = a.b.shape();
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    const int64_t first = offsets[e];
    const int64_t rows = offsets[e + 1] - first;
    if (rows == 0) continue;
    const ConstTensorView weight = a.b.rows(static_cast<int64_t>(e), 1).reshape({b[1], b[2]});
    matmul(*streams[e % streams.size()], {.c = a.c.rows(first, rows),
                                          .a = a.a.rows(first, rows),
                                          .b = weight,
                                          .transpose_b = a.transpose_b});
  }
}

}  // namespace tessera::bench
