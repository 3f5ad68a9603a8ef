#include "kernels/cache_append.h"
#include "kernels/core/group_list.cuh"
#include "kernels/core/pointwise.cuh"

// A few rows of some hundred bytes: the time is that of a launch.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 64;

struct Append {
  uint8_t* cache;
  const uint8_t* x;
  int64_t rows;
  int64_t row;
  int64_t row_bytes;
  GroupList list;
};

/// A block per group, N bytes at a time.
template <int N>
__global__ void __launch_bounds__(kThreads) append_row(Append a) {
  const int c = static_cast<int>(blockIdx.x);
  const uint8_t* const from = a.x + a.list.groups[c] * a.row_bytes;
  uint8_t* const to = a.cache + ((a.list.first + c) * a.rows + a.row) * a.row_bytes;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * N; i < a.row_bytes; i += kThreads * N) {
    copy_numbers<N>(to + i, from + i);
  }
}

}  // namespace

void cache_append(Stream& stream, const CacheAppend& a) {
  constexpr int kPack = 16;
  auto* const cache = static_cast<uint8_t*>(a.cache.data());
  const auto* const x = static_cast<const uint8_t*>(a.x.data());
  const int64_t row_bytes = a.cache.shape()[2] * size_of(a.cache.dtype());
  const bool packed = in_packs(cache, row_bytes) && in_packs(x, row_bytes);
  for_group_lists(a.groups, [&](const GroupList& list) {
    launch(stream, packed ? append_row<kPack> : append_row<1>,
           dim3(static_cast<unsigned>(list.count)), kThreads, 0,
           Append{cache, x, a.cache.shape()[1], a.row, row_bytes, list});
  });
}

}  // namespace tessera::gpu
