#include "parallel/named_tensor.h"

namespace tessera {

std::vector<NamedTensor> named_parts(const std::string& name, const Shard& shard,
                                     const TensorView& data) {
  std::vector<NamedTensor> parts;
  const int64_t rows = data.shape()[0] / shard.blocks;
  for (int64_t block = 0; block < shard.blocks; ++block) {
    // Blocks are on the outermost axis, so that each is a range of rows.
    parts.emplace_back(name, shard.whole, box_of(shard, block), data.rows(block * rows, rows));
  }
  return parts;
}

}  // namespace tessera
