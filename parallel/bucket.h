#pragma once

#include <cstdint>
#include <vector>

#include "parallel/placement.h"

namespace tessera {

/// Parameters of one placement and dtype whose gradients are summed in one exchange, and whose
/// optimizer state is shared out as one long vector: rank r of the n ranks of the placement's
/// group owns the r-th of n equal parts. Where one parameter ends and the next begins, and at the
/// end, there may be a few elements that are always 0.
struct Bucket {
  /// Most gradients that share a bucket, unless one parameter alone has more: 32 MiB of f32. Long
  /// enough that an exchange is bound by bandwidth, short enough that it starts early in backward.
  static constexpr int64_t kElements = int64_t{8} << 20;
  /// Every owned part is a multiple of this many elements.
  static constexpr int64_t kUnit = 16;

  Placement placement = Placement::kReplicated;
  int64_t first = 0;          ///< number of its first parameter, in the order of declaration
  TensorView values = {};     ///< [elements]
  TensorView gradients = {};  ///< [elements], f32; empty for inference
  int64_t owned_begin = 0;
  int64_t owned_length = 0;

  int64_t owned_end() const { return owned_begin + owned_length; }
  TensorView owned_values() const { return values.rows(owned_begin, owned_length); }
  TensorView owned_gradients() const { return gradients.rows(owned_begin, owned_length); }
};

/// Elements of a bucket that holds `elements`, so that `ranks` ranks own equal parts.
int64_t padded_for(int64_t elements, int ranks);

}  // namespace tessera
