#pragma once

#include <vector>

#include "kernels/core/arena.h"

namespace tessera {

/// to = from, in the order of the stream's work: as many elements of the same dtype, which do not
/// overlap. Each is on the stream's device or in host memory. Between a GPU and host memory of
/// Buffer::pinned the call returns at once, and both are in use until the stream is past it (Event,
/// Stream::synchronize); with other host memory it may return as late as that. From host to host it
/// waits for the stream first. On kPlan only dtypes and sizes are checked.
void copy(Stream& stream, ConstTensorView from, TensorView to);

/// Numbers in host memory as a tensor of one axis.
template <class T>
ConstTensorView host_view(const std::vector<T>& values) {
  return {values.data(), kDTypeOf<T>, {static_cast<int64_t>(values.size())}, Device{}};
}
template <class T>
TensorView host_view(std::vector<T>& values) {
  return {values.data(), kDTypeOf<T>, {static_cast<int64_t>(values.size())}, Device{}};
}

/// A tensor of `arena` with the elements of `values`, in ordinary host memory, which may change as
/// soon as this returns: how lists that the host has made come to the kernels.
TensorView to_arena(Stream& stream, Arena& arena, ConstTensorView values, const char* name);

/// The elements of `x` for the host: of small tensors. Waits for the stream; not on kPlan.
template <class T>
std::vector<T> to_vector(Stream& stream, ConstTensorView x) {
  std::vector<T> values(static_cast<size_t>(x.elements()));
  copy(stream, x, host_view(values));
  stream.synchronize();
  return values;
}

/// `x` for the host to read: itself where it is in host memory, else a copy in `memory`, which
/// grows to hold it. Waits for the stream. Not on kPlan.
ConstTensorView on_host(Stream& stream, ConstTensorView x, Buffer& memory);

}  // namespace tessera
