#pragma once

#include <span>
#include <vector>

#include "parallel/communicator.h"

namespace tessera {

/// Adds up gradients over the ranks that hold the same parameters and saw different tokens.
/// Always a sum, never a mean: 1 / tokens of the whole batch is already in the loss, so no
/// gradient depends on how many ranks there are.
class GradientReducer {
 public:
  /// `gradients` are f32, few and large (one flat buffer is best), of the same shapes on every
  /// rank of `ranks`, and stay where they are. `ranks` must outlive the reducer.
  GradientReducer(Communicator& ranks, std::vector<TensorView> gradients);

  /// Each gradient = its sum over the ranks, in place, with the same bits on every rank.
  void reduce(Stream& stream);

 private:
  Communicator& ranks_;
  std::vector<TensorView> gradients_;
};

struct GradientNorm {
  double norm = 0;     ///< sqrt(sum of squares of all elements); infinite or NaN when not finite
  bool finite = true;  ///< no element is infinite or NaN: the step may be applied
};

/// The norm of `gradients` (f32) taken as one vector, each element counted once. Call it after
/// reduce(): then it has the same bits on every rank, and no rank needs to be asked.
/// On kPlan: norm 0, finite.
GradientNorm gradient_norm(Stream& stream, std::span<const TensorView> gradients);

}  // namespace tessera
