#pragma once

#include <span>

#include "kernels/decode_attention.h"
#include "model/token_plan.h"

namespace tessera {

/// One new token of each of several sequences, which are at positions of their own: what the layers
/// ask of them while decoding. Everything but `positions` is on the device.
struct DecodePlan {
  TokenPlan tokens;                    ///< a sequence of one token each
  std::span<const int32_t> positions;  ///< [sequences], in host memory
  ConstTensorView window_rows;         ///< [sequences], i32: where WindowCache keeps the tokens
  ConstTensorView window_spans;        ///< [1, sequences, 3, 2], i32: CacheSpan
  ConstTensorView window_counts;       ///< [1, sequences], i32
  ConstTensorView all_spans;           ///< [1, sequences, 1, 2], i32: of caches that keep all
  ConstTensorView all_counts;          ///< [1, sequences], i32

  int64_t sequences() const { return std::ssize(positions); }
};

/// What decoding is told of the new tokens, both in host memory.
struct DecodeInput {
  /// [sequences, 1 + smear tokens], i32: ids of the new token of each sequence and, behind it, of
  /// those 1, 2, ... places before; -1 where the sequence has none.
  ConstTensorView ids;
  std::span<const int32_t> positions;  ///< [sequences], >= 0
};

/// Tensors are in the arena; `input` must outlive the plan. Throws where shapes do not fit.
DecodePlan plan_decoding(Stream& stream, Arena& arena, const DecodeInput& input, int64_t block,
                         int64_t smear_tokens, const WindowCache& window);

}  // namespace tessera
