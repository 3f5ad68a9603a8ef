#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "kernels/core/buffer.h"
#include "kernels/core/thread_pool.h"

namespace tessera {

/// A copy of what is to be saved, in memory of its own, so that training can go on while it is
/// written. The memory is kept from one save to the next.
class Snapshot {
 public:
  /// A copy whose tensors are this snapshot's; it overwrites that of an earlier call. Tensors are
  /// in host memory.
  CheckpointContents take(ThreadPool& threads, const CheckpointContents& contents);

  /// Memory that take() needs for tensors of these `groups`.
  static int64_t bytes_for(const std::vector<TensorGroup>& groups);

 private:
  void copy(ThreadPool& threads, const std::vector<TensorGroup>& groups);

  std::vector<std::vector<NamedTensor>> tensors_;  ///< of each group
  Buffer memory_;
};

}  // namespace tessera
