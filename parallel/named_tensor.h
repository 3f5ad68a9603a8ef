#pragma once

#include <string>
#include <utility>
#include <vector>

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
  /// What a rank holds in one block.
  NamedTensor(std::string the_name, const Shard& shard, TensorView the_data)
      : NamedTensor(std::move(the_name), shard.whole, box_of(shard), the_data) {
    CHECK(shard.blocks == 1, name, ": the part has ", shard.blocks, " blocks, expected 1");
  }
};

/// What a rank holds of a tensor: one for each block of its part, whose data are `data`.
std::vector<NamedTensor> named_parts(const std::string& name, const Shard& shard,
                                     const TensorView& data);

}  // namespace tessera
