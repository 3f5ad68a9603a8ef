#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// to = from, in the order of the stream's work: as many elements of the same dtype, which do not
/// overlap. Each is on the stream's device or in host memory. Between a GPU and host memory of
/// Buffer::pinned the call returns at once, and both are in use until the stream is past it (Event,
/// Stream::synchronize); with other host memory it may return as late as that. From host to host it
/// waits for the stream first. On kPlan only dtypes and sizes are checked.
void copy(Stream& stream, ConstTensorView from, TensorView to);

}  // namespace tessera
