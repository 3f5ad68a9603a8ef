#pragma once

#include <span>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// The tokens of one micro-batch, in host memory: `sequences` rows of equal length, laid end to
/// end.
struct Batch {
  ConstTensorView tokens;   ///< [tokens], i32
  ConstTensorView targets;  ///< [tokens], i32: the next token; negative: no loss here
  ConstTensorView starts;   ///< [segments + 1], i32: where attention starts anew (SegmentGrid)
  int64_t sequences;
  /// Tokens, numbered over the micro-batch, whose rows are sampled in a step that measures gates.
  std::span<const int32_t> samples = {};
};

}  // namespace tessera
