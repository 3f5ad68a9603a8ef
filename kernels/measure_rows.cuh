#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include "kernels/core/device_check.cuh"
#include "kernels/gate_measure.h"
#include "kernels/query_tile.cuh"

/// What the kernels of measure_gate_rows know of a sampled row.
namespace tessera::gpu {

inline constexpr int kRowHeads = 8;  ///< of a block
inline constexpr int kRowKinds = 3;  ///< sink, window, selected
inline constexpr int kMapColumns = static_cast<int>(kMapBins);
inline constexpr float kLowest = -std::numeric_limits<float>::infinity();

/// What the sampled rows chose. `blocks` is null while the gate rests.
struct RowsChosen {
  const int32_t* blocks;   // [groups, tokens, kept + 1]
  const float* scores;     // likewise
  const int32_t* counts;   // [groups, tokens]
  const float* widths;     // [groups]
  const float* block_lse;  // [groups, tokens, g, kept]
  float strength;
  int kept;
};

/// Partial sums of a block: `highest`, `all` and `kept` of each head, the attended mass by kind and
/// by bin of the map, from the bin of the chunk's first key on.
struct RowParts {
  float* sums;  // [samples, groups, parts, chunks, size]
  int size;
  int bins;
  int parts;   // of a group's heads
  int chunks;  // of a row's keys
  int chunk;   // keys

  __device__ float* at(int sample, int place, int groups, int part, int number) const {
    return sums + (((int64_t{sample} * groups + place) * parts + part) * chunks + number) * size;
  }
};

template <class T>
struct SampledRows {
  const int32_t* samples;  // [samples, 2]
  const int32_t* positions;
  const T* q;
  const T* k;
  const float* lse;          // [heads, tokens]
  const float* sink_logits;  // [heads], or null
  GridView grid;
  GroupList groups;
  RowsChosen chosen;
  RowParts parts;
  int places;  // groups
  int sequence_length;
  int group_heads;
  int kv_heads;
  int d;
  int sink_blocks;
  int window_blocks;
  float scale;
  bool packs;
};

/// Where a sampled row is, as in measure_rows_cpu.cc.
struct RowPlace {
  int token;
  int at;
  int shift;
};
template <class T>
__device__ __forceinline__ RowPlace find_place(const SampledRows<T>& a, int sample) {
  const int token = a.samples[2 * sample];
  const int in_sequence = a.samples[2 * sample + 1];
  const bool inside = token >= 0 && token < a.grid.tokens && in_sequence < a.sequence_length;
  const int at = inside ? a.positions[token] : 0;
  device_check(inside && at <= in_sequence,
               "measure_gate_rows: a sample is not a row, or not of its sequence");
  return {token, at, in_sequence - at};
}
template <class T>
__device__ __forceinline__ int find_key_origin(const SampledRows<T>& a, const RowPlace& place) {
  const int piece = range_of(a.grid.pieces.starts, a.grid.pieces.size, place.token);
  const int segment = a.grid.pieces.segment(piece);
  const int run = a.grid.runs.begin_of(segment);
  const bool here = run < a.grid.runs.size && a.grid.runs.segment(run) == segment;
  device_check(here && a.grid.runs.first(run) == 0 && a.grid.runs.end(run) > place.at,
               "measure_gate_rows: the keys of a segment are not one run from its first to its "
               "last query's position");
  return a.grid.runs.row(run);
}
template <class T>
__device__ __forceinline__ int bin_of(const SampledRows<T>& a, int shift, int key) {
  return static_cast<int>(int64_t{shift + key} * kMapColumns / a.sequence_length);
}

/// How a row attends to a block.
struct RowBlock {
  int kind;  // sink, window, selected: 0, 1, 2
  bool attended;
  float log_gate;
};
/// The choice of one row.
class RowChoice {
 public:
  template <class T>
  __device__ RowChoice(const SampledRows<T>& a, int place, const RowPlace& row)
      : own_(row.at / a.grid.block),
        sink_(a.sink_blocks),
        window_(a.window_blocks),
        resting_(a.chosen.blocks == nullptr),
        strength_(a.chosen.strength) {
    if (resting_) return;
    const int64_t of = int64_t{place} * a.grid.tokens + row.token;
    blocks_ = a.chosen.blocks + of * (a.chosen.kept + 1);
    scores_ = a.chosen.scores + of * (a.chosen.kept + 1);
    count_ = a.chosen.counts[of];
    dropped_ = blocks_[a.chosen.kept] >= 0;
    tau_ = scores_[a.chosen.kept];
    width_ = a.chosen.widths[place];
  }
  __device__ RowBlock use(int block) const {
    if (block > own_ - window_) return {1, true, 0.0f};
    if (block < sink_) return {0, true, 0.0f};
    if (resting_) return {2, true, 0.0f};
    int low = 0;
    for (int left = count_; left > 0;) {
      const int half = left / 2;
      const bool before = blocks_[low + half] < block;
      low += before ? half + 1 : 0;
      left = before ? left - half - 1 : half;
    }
    const bool found = low < count_ && blocks_[low] == block;
    return {2, found, found ? log_gate(low) : 0.0f};
  }
  __device__ float openness(int slot) const { return (scores_[slot] - tau_) / width_; }
  __device__ bool resting() const { return resting_; }
  __device__ bool dropped() const { return dropped_; }
  __device__ int count() const { return count_; }
  __device__ float tau() const { return tau_; }
  __device__ const float* scores() const { return scores_; }

 private:
  __device__ float log_gate(int slot) const {
    if (!dropped_) return 0;
    const float u = openness(slot);
    return u >= 1 ? 0.0f : logf((1 - strength_) + strength_ * fmaxf(u, 0.0f));
  }

  int own_;
  int sink_;
  int window_;
  bool resting_;
  float strength_;
  const int32_t* blocks_ = nullptr;
  const float* scores_ = nullptr;
  int count_ = 0;
  bool dropped_ = false;
  float tau_ = 0;
  float width_ = 1;
};

/// Sums of exp(s - highest), of a lane or of more.
struct RowSoftmax {
  float highest = kLowest;
  float all = 0;
  float kept = 0;

  __device__ void add(const RowSoftmax& other) {
    if (other.all == 0) return;
    if (other.highest > highest) {
      const float factor = all > 0 ? expf(highest - other.highest) : 0.0f;
      all *= factor;
      kept *= factor;
      highest = other.highest;
    }
    const float factor = expf(other.highest - highest);
    all += other.all * factor;
    kept += other.kept * factor;
  }
};

}  // namespace tessera::gpu
