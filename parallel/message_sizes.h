#pragma once

#include <algorithm>
#include <cstdint>

namespace tessera {

/// How exchanges are cut into messages: used by those that send them and by those that count bytes.

/// An exchange of at most this many bytes on all ranks together is short: one step of latency
/// costs more than its bytes. Every rank sends all it has to all others.
constexpr bool is_short(int64_t bytes_on_all_ranks) {
  return bytes_on_all_ranks <= (64 << 10);
}

/// Long reductions go in chunks of this many bytes, so that their scratch memory is bounded:
/// 16 MiB, and at least 64 KiB for each rank. Ranks wait for each other twice in a chunk: on 2 busy
/// cores, 2 ranks spent 75 ms of processor time on 128 MiB with chunks of 16 MiB, 230 ms with 4 MiB
/// and 70 ms with 64 MiB.
constexpr int64_t chunk_bytes(int ranks) {
  return std::max<int64_t>(16 << 20, int64_t{64 << 10} * ranks);
}

/// Rank r reduces elements [slice_begin(r), slice_begin(r + 1)) of a chunk.
constexpr int64_t slice_begin(int64_t elements, int rank, int ranks) {
  return elements * rank / ranks;
}

/// Bytes that rank `rank` sends to others in an all_reduce, and receives as many: `elements` of
/// `width` bytes.
int64_t all_reduce_bytes(int64_t elements, int64_t width, int rank, int ranks);

/// Scratch memory of rank `rank` for an all_reduce of `elements` of `width` bytes over messages:
/// what all ranks send it to add up at a time.
int64_t all_reduce_scratch(int64_t elements, int64_t width, int rank, int ranks);
/// Likewise for a reduce_scatter of which each rank gets `part` elements.
int64_t reduce_scatter_scratch(int64_t part, int64_t width, int ranks);

}  // namespace tessera
