#pragma once

#include "model/step_context.h"

namespace tessera {

/// The two ends of a tensor-parallel region. Outside of it (residual stream, norms, router) each
/// tensor rank holds its own share of the sequence rank's tokens; inside each has all tokens and
/// its own columns. With one tensor rank nothing is copied.

/// All tokens of the sequence rank, [tokens, dim], of the shares [tokens / ranks, dim] of the
/// tensor ranks. Allocates in the arena.
ConstTensorView gather_tokens(StepContext& step, ConstTensorView share);

/// Where this rank writes its summand of all tokens: a new tensor [tokens, dim], or `share` itself
/// when there is nobody to add it to.
TensorView partial_of(StepContext& step, TensorView share);
/// share = this rank's tokens of the sum of all ranks' `partial`; rounded once.
void sum_partials(StepContext& step, TensorView partial, TensorView share);

}  // namespace tessera
