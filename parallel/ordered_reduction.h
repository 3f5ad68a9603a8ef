#pragma once

#include <span>

#include "parallel/communicator.h"

namespace tessera {

/// out[i] = parts[0][i] + parts[1][i] + ..., added in that order, or their maximum; host memory.
/// The arithmetic of every host communicator, so that their results have the same bits.
/// f32, i32 and i64 are reduced in their own type, bf16 in f32 and rounded once. A NaN among the
/// parts is a NaN in the result. `out` may be one of the parts; `parts` is not empty.
void reduce_in_order(DType dtype, Reduction reduction, std::span<const void* const> parts,
                     int64_t elements, void* out);

namespace gpu {

/// What the ranks bring, in memory of a GPU: rank r's elements are at `others` + r * stride bytes,
/// and those of `rank` at `own`.
struct PartsOfRanks {
  const void* others;
  int64_t stride;
  const void* own;
  int rank;
  int ranks;
};

/// As above on the stream's GPU, with the same bits. `out` may be `own`.
void reduce_in_order(Stream& stream, DType dtype, Reduction reduction, const PartsOfRanks& parts,
                     int64_t elements, void* out);

}  // namespace gpu

}  // namespace tessera
