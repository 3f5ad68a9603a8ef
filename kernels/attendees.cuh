#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/core/workspace.h"
#include "kernels/segment_grid.cuh"

/// Which tokens see a panel of keys, for the kernel of dk and dv.
namespace tessera::gpu {

/// Tokens that see a panel, in shared memory.
struct Attendees {
  static constexpr int kMost = 256;

  int* token;     // row of q
  int* position;  // within the segment
  float* bias;    // log2 of the gate
};

/// A panel of keys, and which share of the rows that see it a block of threads is to do.
struct KeyTask {
  int segment = 0;
  int first = 0;  ///< position of its first key
  int count = 0;  ///< keys; 0: nothing to do
  int row = 0;    ///< of k and v, of its first key
  int place = 0;  ///< of the group, in the list
  int chunk = 0;  ///< of `chunks`
  int chunks = 1;
  float* partial = nullptr;  ///< [2, keys, kD]: sums of the chunk; null: dk and dv are whole
};

/// The tokens at positions [begin, end) of a segment, wherever its pieces have some, ascending; of
/// them the share of one chunk. The same in all lanes.
class AttendeeRange {
 public:
  __device__ AttendeeRange(const Stretches& pieces, const KeyTask& task, int begin, int end)
      : pieces_(pieces),
        begin_(begin),
        end_(end),
        piece_(pieces.begin_of(task.segment)),
        end_piece_(pieces.begin_of(task.segment + 1)) {
    if (task.chunks == 1) return;
    int64_t tokens = 0;
    for (int i = piece_; i < end_piece_; ++i) tokens += here(i);
    skipped_ = static_cast<int>(tokens * task.chunk / task.chunks);
    left_ = static_cast<int>(tokens * (task.chunk + 1) / task.chunks) - skipped_;
  }

  /// Puts the next tokens into places from `used` on; returns how many places are used then. A lane
  /// writes some of them: a barrier is needed before they are read.
  __device__ int fill(const Attendees& attendees, int used) {
    while (piece_ < end_piece_ && left_ > 0 && used < Attendees::kMost) {
      const int count = here(piece_);
      if (skipped_ >= count) {
        skipped_ -= count;
        ++piece_;
        continue;
      }
      const int taken = std::min({count - skipped_, Attendees::kMost - used, left_});
      const int first = std::max(begin_, pieces_.first(piece_)) + skipped_;
      for (int i = static_cast<int>(threadIdx.x); i < taken; i += static_cast<int>(blockDim.x)) {
        attendees.token[used + i] = pieces_.origin(piece_) + first + i;
        attendees.position[used + i] = first + i;
        attendees.bias[used + i] = 0;
      }
      skipped_ += taken;
      left_ -= taken;
      used += taken;
    }
    return used;
  }

 private:
  /// Tokens of the range in a piece.
  __device__ int here(int piece) const {
    return std::max(0, std::min(end_, pieces_.end(piece)) - std::max(begin_, pieces_.first(piece)));
  }

  const Stretches& pieces_;
  int begin_;
  int end_;
  int piece_;
  int end_piece_;
  int skipped_ = 0;  // tokens of the current piece that are behind us, or of an earlier chunk
  int left_ = 1 << 30;
};

/// How the work of panels that all tokens see, those of sink tokens, is cut: into chunks of the
/// tokens, whose sums a second kernel adds in their order. Which panels these are follows from the
/// rules and how many there may be from the shapes.
struct SplitPanels {
  int chunks = 1;             ///< of each; 1: no panel is split
  int chunks_of_grid = 0;     ///< blockIdx.x has this many of each; 0: it has the other panels
  int per_owner = 0;          ///< panels of each run or segment
  int panels = 0;             ///< of a group
  int64_t numbers = 0;        ///< of one chunk's sums
  float* partials = nullptr;  ///< [groups, panels, chunks, numbers]

  /// Which panel and chunk this block of threads has.
  __device__ int panel() const { return static_cast<int>(blockIdx.x) / chunks_of_grid; }
  __device__ int chunk() const { return static_cast<int>(blockIdx.x) % chunks_of_grid; }
  /// Where the sums of its chunk go.
  __device__ float* partial() const {
    const int64_t place = int64_t{blockIdx.y} * panels + panel();
    return partials + (place * chunks + chunk()) * numbers;
  }
  /// Whether a panel belongs to this launch.
  __device__ bool has(bool seen_by_all) const {
    return chunks == 1 || seen_by_all == (chunks_of_grid > 0);
  }
};
/// For `owners` runs or segments with up to `per_owner` panels of `numbers` sums each.
inline SplitPanels split_panels(Stream& stream, int64_t owners, int64_t per_owner, size_t groups,
                                int64_t tokens, int64_t numbers) {
  constexpr int64_t kMostChunks = 32;
  constexpr int64_t kTokensPerChunk = 128;
  const int64_t bytes =
      static_cast<int64_t>(groups) * owners * per_owner * numbers * int64_t{sizeof(float)};
  if (bytes == 0) return {};
  const int64_t chunks = std::min({kMostChunks, (tokens + kTokensPerChunk - 1) / kTokensPerChunk,
                                   Stream::kWorkspaceBytes / bytes});
  if (chunks <= 1) return {};
  return {.chunks = static_cast<int>(chunks),
          .per_owner = static_cast<int>(per_owner),
          .panels = static_cast<int>(owners * per_owner),
          .numbers = numbers,
          .partials = Workspace(stream, "attention_backward").take<float>(chunks * bytes / 4)};
}

}  // namespace tessera::gpu
