#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "tests/simt/block_runner.h"
#include "tests/simt/lane_state.h"

/// CUDA's functions for the lanes of a warp and of a block, as the Programming Guide documents
/// them ("Warp Shuffle Functions", "Warp Vote Functions", "Warp Reduce Functions",
/// "Synchronization Functions"). A shuffle orders no memory: only __syncwarp does.

namespace tessera::simt {

/// What a lane gives and gets: `from` is the lane of the warp whose value it wants.
struct Shuffle {
  uint64_t value;
  int from;
};
void shuffle(const char* site, uint32_t mask, Shuffle& exchange);

enum class Vote : int { kBallot, kMatch, kAdd, kMin, kMax, kAnd, kOr, kMinSigned, kMaxSigned };
struct Ballot {
  uint64_t value;
  uint32_t result;
};
uint32_t vote(const char* site, uint32_t mask, uint64_t value, Vote kind);

template <class T>
T shuffle_from(const char* site, uint32_t mask, T value, int from) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  Shuffle exchange{std::bit_cast<Bits>(value), from};
  shuffle(site, mask, exchange);
  return std::bit_cast<T>(static_cast<Bits>(exchange.value));
}

/// The lane that `offset` leads to within a group of `width` lanes, or the lane itself.
inline int lane_in_warp() {
  return current_lane() % 32;
}
int shuffle_source(int from, int width, bool within);

}  // namespace tessera::simt

inline void __syncthreads() {
  tessera::simt::block_barrier("__syncthreads", 0);
}
inline int __syncthreads_count(int predicate) {
  return static_cast<int>(tessera::simt::block_barrier("__syncthreads_count", predicate != 0));
}
inline int __syncthreads_or(int predicate) {
  return tessera::simt::block_barrier("__syncthreads_or", predicate != 0) != 0;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
  tessera::simt::warp_barrier(mask);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const int lane = tessera::simt::lane_in_warp();
  return tessera::simt::shuffle_from("__shfl_sync", mask, value,
                                     (lane & ~(width - 1)) + (from & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = tessera::simt::lane_in_warp();
  const int from = lane ^ bits;
  // Into a later group of lanes: its own value; into an earlier one is allowed.
  return tessera::simt::shuffle_from("__shfl_xor_sync", mask, value,
                                     from / width > lane / width ? lane : from);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned offset, int width = 32) {
  const int lane = tessera::simt::lane_in_warp();
  const int from = lane - static_cast<int>(offset);
  return tessera::simt::shuffle_from("__shfl_up_sync", mask, value,
                                     from < (lane & ~(width - 1)) ? lane : from);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned offset, int width = 32) {
  const int lane = tessera::simt::lane_in_warp();
  const int from = lane + static_cast<int>(offset);
  return tessera::simt::shuffle_from("__shfl_down_sync", mask, value,
                                     from > (lane | (width - 1)) ? lane : from);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return tessera::simt::vote("__ballot_sync", mask, predicate != 0, tessera::simt::Vote::kBallot);
}
inline int __any_sync(unsigned mask, int predicate) {
  return tessera::simt::vote("__any_sync", mask, predicate != 0, tessera::simt::Vote::kBallot) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return tessera::simt::vote("__all_sync", mask, predicate != 0, tessera::simt::Vote::kBallot) ==
         mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return tessera::simt::vote("__match_any_sync", mask, std::bit_cast<Bits>(value),
                             tessera::simt::Vote::kMatch);
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return tessera::simt::vote("__reduce_add_sync", mask, value, tessera::simt::Vote::kAdd);
}
inline int __reduce_add_sync(unsigned mask, int value) {
  return static_cast<int>(__reduce_add_sync(mask, static_cast<unsigned>(value)));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return tessera::simt::vote("__reduce_min_sync", mask, value, tessera::simt::Vote::kMin);
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return tessera::simt::vote("__reduce_max_sync", mask, value, tessera::simt::Vote::kMax);
}
inline int __reduce_min_sync(unsigned mask, int value) {
  return static_cast<int>(tessera::simt::vote(
      "__reduce_min_sync", mask, static_cast<unsigned>(value), tessera::simt::Vote::kMinSigned));
}
inline int __reduce_max_sync(unsigned mask, int value) {
  return static_cast<int>(tessera::simt::vote(
      "__reduce_max_sync", mask, static_cast<unsigned>(value), tessera::simt::Vote::kMaxSigned));
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value) {
  return tessera::simt::vote("__reduce_and_sync", mask, value, tessera::simt::Vote::kAnd);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return tessera::simt::vote("__reduce_or_sync", mask, value, tessera::simt::Vote::kOr);
}
