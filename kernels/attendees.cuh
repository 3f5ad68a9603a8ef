#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/segment_grid.cuh"

/// Which tokens see a panel of keys, for the kernel of dk and dv.
namespace tessera::gpu {

/// Tokens that see a panel, in shared memory. One address, as registers are scarce.
struct Attendees {
  static constexpr int kMost = 256;
  static constexpr int kNumbers = 3 * kMost + 4;
  int* numbers;

  __device__ int* token() const { return numbers; }             ///< row of q
  __device__ int* position() const { return numbers + kMost; }  ///< within the segment
  /// log2 of the gate.
  __device__ float* bias() const { return reinterpret_cast<float*>(numbers + 2 * kMost); }
  __device__ int* scratch() const { return numbers + 3 * kMost; }  ///< [4], for who fills it
};

/// A token that sees a panel.
struct Attendee {
  int token;     ///< row of q
  int position;  ///< within the segment
  float bias;    ///< log2 of the gate
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

  __device__ int begin() const { return begin_; }

  /// How many tokens, at most `most`, come next in one piece; 0 behind the last.
  __device__ int next(int most) {
    for (; piece_ < end_piece_ && left_ > 0; ++piece_) {
      const int count = here(piece_);
      if (skipped_ < count) {
        const int taken = std::min({count - skipped_, most, left_});
        first_ = {pieces_.origin(piece_), std::max(begin_, pieces_.first(piece_)) + skipped_, 0};
        first_.token += first_.position;
        skipped_ += taken;
        left_ -= taken;
        return taken;
      }
      skipped_ -= count;
    }
    return 0;
  }
  /// The i-th of them.
  __device__ Attendee at(int i) const { return {first_.token + i, first_.position + i, 0}; }

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
        attendees.token()[used + i] = pieces_.origin(piece_) + first + i;
        attendees.position()[used + i] = first + i;
        attendees.bias()[used + i] = 0;
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
  Attendee first_{};  // of what `next` told last
};

/// Panels that many more tokens see than others do would hold up a launch. These are cut into
/// chunks of their tokens, and the sums of the chunks added in their order: three launches in place
/// of one.
enum class KeyPass : int {
  kWhole,   ///< the panels that are not cut
  kChunks,  ///< a block of threads per chunk
  kSums     ///< a block of threads per panel that is cut, or finds that it has none
};
/// Blocks of threads of each pass along x.
struct KeyPassBlocks {
  int64_t whole;
  int64_t chunks = 0;
  int64_t sums = 0;
};

}  // namespace tessera::gpu
