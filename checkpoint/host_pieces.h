#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Bytes of a tensor, in host memory.
struct HostPiece {
  size_t tensor;       ///< its number
  int64_t first_byte;  ///< a multiple of the length of pieces
  std::span<const std::byte> bytes;
};

/// Calls `work` once for every piece of `tensors`, in any order, on the threads of `stream`: pieces
/// of `piece_bytes`, at most 64 MiB, the last of a tensor shorter. What is on a device comes to
/// host memory some pieces at a time, and is there as long as `work` takes.
void for_each_host_piece(Stream& stream, std::span<const ConstTensorView> tensors,
                         int64_t piece_bytes, const std::function<void(const HostPiece&)>& work);

}  // namespace tessera
