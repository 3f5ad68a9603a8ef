#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "kernels/core/buffer.h"

namespace tessera {

/// A copy of what is to be saved, in memory of its own, so that training can go on while it is
/// written. The memory is kept from one save to the next.
class Snapshot {
 public:
  /// A copy whose tensors are this snapshot's, in host memory; it overwrites that of an earlier
  /// call. Tensors of `contents` are on the device of `stream`, for which it waits, or in host
  /// memory.
  CheckpointContents take(Stream& stream, const CheckpointContents& contents);

  /// Memory that take() needs for tensors of these `groups`.
  static int64_t bytes_for(const std::vector<TensorGroup>& groups);

 private:
  void copy_all(Stream& stream, const std::vector<TensorGroup>& groups);

  std::vector<std::vector<NamedTensor>> tensors_;  ///< of each group
  Buffer memory_;
};

}  // namespace tessera
