#include "parallel/message_sizes.h"

namespace tessera {

int64_t all_reduce_bytes(int64_t elements, int64_t width, int rank, int ranks) {
  if (is_short(elements * width * ranks)) return elements * width * (ranks - 1);
  const int64_t chunk = chunk_bytes(ranks) / width;
  int64_t bytes = 0;
  for (int64_t begin = 0; begin < elements; begin += chunk) {
    const int64_t count = std::min(chunk, elements - begin);
    const int64_t own = slice_begin(count, rank + 1, ranks) - slice_begin(count, rank, ranks);
    // Everybody's slice to its rank, then the sum of its own to everybody.
    bytes += (count - own + own * (ranks - 1)) * width;
  }
  return bytes;
}

int64_t all_reduce_scratch(int64_t elements, int64_t width, int rank, int ranks) {
  if (is_short(elements * width * ranks)) return elements * width * ranks;
  const auto slice = [&](int64_t count) {
    return slice_begin(count, rank + 1, ranks) - slice_begin(count, rank, ranks);
  };
  const int64_t chunk = chunk_bytes(ranks) / width;
  // All chunks but the last are alike.
  const int64_t most = std::max(slice(std::min(chunk, elements)), slice(elements % chunk));
  return most * width * ranks;
}

int64_t reduce_scatter_scratch(int64_t part, int64_t width, int ranks) {
  return std::min(chunk_bytes(ranks) / ranks / width, part) * width * ranks;
}

}  // namespace tessera
