#include "parallel/shard.h"

#include <algorithm>

namespace tessera {

Shard Shard::replicated(Shape whole) {
  CHECK(whole.rank() > 0, "shard: the global tensor has no axes");
  return {whole, 0, 0, whole[0]};
}

Shard Shard::split(Shape whole, int axis, int part, int parts) {
  CHECK(axis >= 0 && axis < whole.rank(), "shard: axis is ", axis, ", expected one of ", whole);
  CHECK(part >= 0 && part < parts, "shard: part is ", part, ", expected 0 to ", parts - 1);
  const int64_t base = whole[axis] / parts;
  const int64_t longer = whole[axis] % parts;
  const int64_t begin = part * base + std::min<int64_t>(part, longer);
  return {whole, axis, begin, base + (part < longer ? 1 : 0)};
}

std::optional<Box> overlap(const Shard& a, const Shard& b) {
  CHECK(a.whole == b.whole, "overlap: one shard is of a tensor ", a.whole, ", the other of ",
        b.whole);
  Box box{.extents = a.whole};
  const auto keep = [&box](const Shard& shard) {
    const size_t axis = static_cast<size_t>(shard.axis);
    const int64_t begin = std::max(box.begin[axis], shard.begin);
    const int64_t end =
        std::min(box.begin[axis] + box.extents[shard.axis], shard.begin + shard.length);
    box.begin[axis] = begin;
    box.extents = box.extents.with(shard.axis, std::max<int64_t>(0, end - begin));
  };
  keep(a);
  keep(b);
  if (box.extents.elements() == 0) return std::nullopt;
  return box;
}

}  // namespace tessera
