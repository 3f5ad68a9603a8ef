#include "kernels/cache_append.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

void cache_append(Stream& stream, const CacheAppend& a) {
  const Shape cache = a.cache.shape();
  const Shape x = a.x.shape();
  const auto groups = static_cast<int64_t>(a.groups.size());
  CHECK(cache.rank() == 4 && cache[0] == groups, "cache_append: cache is ", cache, ", expected [",
        groups, " groups, sequences, rows, d]");
  CHECK(x.rank() == 3 && x[2] == cache[3], "cache_append: x is ", x,
        ", expected [tokens, kv_heads, ", cache[3], "]");
  CHECK(a.x.dtype() == a.cache.dtype(), "cache_append: x is ", name_of(a.x.dtype()),
        ", expected the dtype of cache, ", name_of(a.cache.dtype()));
  expect_tensor(a.places, DType::kI32, {x[0]}, "cache_append: places", "[tokens]");
  expect_tensor(a.rows, DType::kI32, {x[0]}, "cache_append: rows", "[tokens]");
  for (const int32_t group : a.groups) {
    CHECK(group >= 0 && group < x[1], "cache_append: group ", group, ", expected 0 to ", x[1] - 1);
  }
  if (stream.on(DeviceKind::kCpu)) cpu::cache_append(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::cache_append(stream, a);
  }
}

}  // namespace tessera
