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

}  // namespace tessera
