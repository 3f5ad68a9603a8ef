#include "parallel/shard.h"

#include <algorithm>

namespace tessera {

namespace {

// The range within `block` from `axis` on; the axes before are fixed already.
void add_boxes(Box block, int axis, int64_t begin, int64_t end, std::vector<Box>& boxes) {
  if (begin == end) return;
  int64_t row = 1;
  for (int inner = axis + 1; inner < block.extents.rank(); ++inner) row *= block.extents[inner];
  const auto rows = [&](int64_t first, int64_t count) {
    Box part = block;
    part.begin[static_cast<size_t>(axis)] += first;
    part.extents = block.extents.with(axis, count);
    return part;
  };
  const int64_t first = begin / row;
  const int64_t last = end / row;
  if (begin % row != 0 && first == last) {
    return add_boxes(rows(first, 1), axis + 1, begin % row, end % row, boxes);
  }
  if (begin % row != 0) add_boxes(rows(first, 1), axis + 1, begin % row, row, boxes);
  const int64_t whole = first + (begin % row != 0 ? 1 : 0);
  if (whole < last) boxes.push_back(rows(whole, last - whole));
  if (end % row != 0) add_boxes(rows(last, 1), axis + 1, 0, end % row, boxes);
}

}  // namespace

Shard Shard::replicated(Shape whole) {
  CHECK(whole.rank() > 0, "shard: the global tensor has no axes");
  return {whole, 0, 0, whole[0]};
}

Shard Shard::split(Shape whole, int axis, int part, int parts, int64_t blocks) {
  CHECK(axis >= 0 && axis < whole.rank(), "shard: axis is ", axis, ", expected one of ", whole);
  CHECK(part >= 0 && part < parts, "shard: part is ", part, ", expected 0 to ", parts - 1);
  CHECK(blocks >= 1 && whole[axis] % blocks == 0 && (blocks == 1 || axis == 0), "shard: ", blocks,
        " blocks of axis ", axis, " of ", whole, ", expected a divisor of the outermost extent");
  const int64_t extent = whole[axis] / blocks;
  const int64_t base = extent / parts;
  const int64_t longer = extent % parts;
  const int64_t begin = part * base + std::min<int64_t>(part, longer);
  return {whole, axis, begin, base + (part < longer ? 1 : 0), blocks};
}

Shard Shard::range(Shape whole, int axis, int64_t begin, int64_t length) {
  CHECK(axis >= 0 && axis < whole.rank(), "shard: axis is ", axis, ", expected one of ", whole);
  CHECK(begin >= 0 && length >= 0 && begin + length <= whole[axis], "shard: indices ", begin,
        " to ", begin + length, " of axis ", axis, ", expected some of ", whole);
  return {whole, axis, begin, length};
}

Box whole_box(const Shape& shape) {
  return {.begin = {}, .extents = shape};
}

Box box_of(const Shard& shard, int64_t block) {
  Box box{.begin = {}, .extents = shard.whole.with(shard.axis, shard.length)};
  box.begin[static_cast<size_t>(shard.axis)] = block * shard.block_extent() + shard.begin;
  return box;
}

std::vector<Box> boxes_of_range(const Box& block, int64_t begin, int64_t end) {
  CHECK(begin >= 0 && begin <= end && end <= block.extents.elements(), "boxes_of_range: [", begin,
        ", ", end, ") is not within the ", block.extents.elements(), " elements of a block ",
        block.extents);
  std::vector<Box> boxes;
  add_boxes(block, 0, begin, end, boxes);
  return boxes;
}

std::vector<Box> boxes_of_range(const Shard& shard, int64_t begin, int64_t end) {
  std::vector<Box> boxes;
  const int64_t block_elements = shard.local().elements() / shard.blocks;
  for (int64_t block = 0; block < shard.blocks; ++block) {
    const int64_t first = block * block_elements;
    const int64_t from = std::clamp(begin - first, int64_t{0}, block_elements);
    const int64_t to = std::clamp(end - first, int64_t{0}, block_elements);
    for (const Box& box : boxes_of_range(box_of(shard, block), from, to)) boxes.push_back(box);
  }
  return boxes;
}

}  // namespace tessera
