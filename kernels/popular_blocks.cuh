#pragma once

#include <algorithm>

#include "kernels/attendees.cuh"
#include "kernels/block_walk.cuh"

/// Blocks of keys that many more tokens attend to than to the others, sink blocks among them: a
/// kernel finds them, as the host cannot look into the lists. Which they are, and into how many
/// chunks their tokens are cut, follows from the lists alone.
namespace tessera::gpu {

/// The lists of the blocks.
struct BlockTiles {
  const int32_t* offsets;  ///< [groups, max_blocks + 1]
  const int32_t* tiles;    ///< [groups, capacity]
  const uint16_t* masks;   ///< [groups, capacity]
  const int32_t* counts;   ///< [groups, tokens]: how many blocks each token chose
  int64_t offsets_of_group;
};

/// A slot is a chunk of a popular block. Slots of a block are neighbours.
struct PopularBlocks {
  int32_t* chunks;      ///< [groups, max_blocks]: of each block; 0: it is not popular
  int32_t* first_slot;  ///< [groups, max_blocks]: of popular ones
  int32_t* slot_block;  ///< [groups, slots]: over all segments; -1: not used
  float* partials;      ///< [groups, panels of a block, slots, numbers]
  int slots;
  int max_blocks;
  int64_t numbers;
};

/// Behind the last position at which a block of a segment is forced.
__device__ inline int end_of_forced(const Choices& choices, int block, int tokens) {
  if (block < choices.sink_blocks) return kMostReach;
  const int64_t end = (int64_t{block} + choices.window_blocks) * tokens;
  return static_cast<int>(std::min(end, int64_t{kMostReach}));
}

/// For `panels` panels per block, whose chunks have `numbers` sums each.
PopularBlocks popular_blocks(Stream& stream, const Choices& choices, const BlockTiles& lists,
                             const GridView& grid, int64_t groups, int64_t panels, int64_t numbers);

}  // namespace tessera::gpu
