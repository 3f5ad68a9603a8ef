#include "kernels/cache_append.h"
#include "kernels/core/device_check.cuh"
#include "kernels/core/group_list.cuh"
#include "kernels/core/pointwise.cuh"

// While decoding a few rows of some hundred bytes: the time is that of a launch.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 64;

struct Append {
  uint8_t* cache;
  const uint8_t* x;
  const int32_t* place_of;  // [tokens]
  const int32_t* row_of;    // [tokens]
  int64_t sequences;
  int64_t rows;
  int64_t heads;
  int64_t row_bytes;
  GroupList list;
};

/// A block per token and group, N bytes at a time.
template <int N>
__global__ void __launch_bounds__(kThreads) append_row(Append a) {
  const int64_t t = blockIdx.x;
  const int c = static_cast<int>(blockIdx.y);
  const int64_t sequence = a.place_of[t];
  const int64_t row = a.row_of[t];
  device_check(sequence >= 0 && sequence < a.sequences && row >= -1 && row < a.rows,
               "cache_append: a place or a row is outside of the cache");
  if (row < 0) return;
  const int64_t place = int64_t{a.list.first + c} * a.sequences + sequence;
  const uint8_t* const from = a.x + (t * a.heads + a.list.groups[c]) * a.row_bytes;
  uint8_t* const to = a.cache + (place * a.rows + row) * a.row_bytes;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < a.row_bytes; i += kThreads * N) {
    copy_numbers<N>(to + i, from + i);
  }
}

}  // namespace

void cache_append(Stream& stream, const CacheAppend& a) {
  constexpr int kPack = 16;
  auto* const cache = static_cast<uint8_t*>(a.cache.data());
  const auto* const x = static_cast<const uint8_t*>(a.x.data());
  const int64_t row_bytes = a.cache.shape()[3] * size_of(a.cache.dtype());
  const bool packed = in_packs(cache, row_bytes) && in_packs(x, row_bytes);
  for_group_lists(a.groups, [&](const GroupList& list) {
    launch(stream, packed ? append_row<kPack> : append_row<1>,
           dim3(static_cast<unsigned>(a.x.shape()[0]), static_cast<unsigned>(list.count)), kThreads,
           0,
           Append{.cache = cache,
                  .x = x,
                  .place_of = a.places.as<int32_t>().data(),
                  .row_of = a.rows.as<int32_t>().data(),
                  .sequences = a.cache.shape()[1],
                  .rows = a.cache.shape()[2],
                  .heads = a.x.shape()[1],
                  .row_bytes = row_bytes,
                  .list = list});
  });
}

}  // namespace tessera::gpu
