#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/reader.h"

namespace tessera {

/// Where two checkpoints differ in one tensor.
struct TensorDifference {
  TensorKind kind = TensorKind::kParameter;
  std::string name;
  /// "is only in the first", "is f32 [4] and f32 [5]"; empty when it is the values.
  std::string reason;
  int64_t elements = 0;   ///< whose bits differ
  std::string first;      ///< index of the first of them, "[3, 17]"
  double first_left = 0;  ///< its values
  double first_right = 0;
  double largest = 0;  ///< largest absolute difference; NaN when one side alone is NaN somewhere
};

/// Compares all tensors by kind and name, whatever mesh saved them: equal digests are taken as
/// equal, others are read, one tensor at a time. Sorted by kind and name; empty when the
/// checkpoints hold the same state. Throws kBadData when one is damaged.
std::vector<TensorDifference> compare_checkpoints(const CheckpointReader& left,
                                                  const CheckpointReader& right);

}  // namespace tessera
