#pragma once

#include <string>
#include <utility>

#include "parallel/shard.h"

namespace tessera {

/// A part of one tensor of a checkpoint: the tensor's name in the whole model, and a box of it.
struct NamedTensor {
  std::string name;
  Shape whole;      ///< of the tensor
  Box box;          ///< within it; an extent may be 0
  TensorView data;  ///< shape box.extents

  NamedTensor(std::string the_name, const Shape& the_whole, const Box& the_box, TensorView the_data)
      : name(std::move(the_name)), whole(the_whole), box(the_box), data(the_data) {}
  /// What a rank holds.
  NamedTensor(std::string the_name, const Shard& shard, TensorView the_data)
      : NamedTensor(std::move(the_name), shard.whole, box_of(shard), the_data) {}
};

}  // namespace tessera
