#include <algorithm>

#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/permute_tokens.h"

// Moving rows is memory alone: a warp per row, 16 bytes per lane at a time where rows allow it.
// Indices out of range move nothing. The rows of an expert are in the order of tokens, so whoever
// goes by rows reads each token's row k times, far apart and so from memory each time; whoever goes
// by tokens reads it once and writes it k times, or reads k rows and writes their sum.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

/// Rows of `units` Units. A gather: to[r] = from[index[r] / slots] for `rows` rows of `to`. A
/// scatter: to[index[r, s]] = from[r] for `rows` rows of `from` and s < slots.
template <class Unit>
struct Move {
  Unit* to;
  const Unit* from;
  const int* index;
  int64_t rows;
  int64_t limit;  // of an index
  int64_t units;
  int slots;
};

__device__ __forceinline__ int64_t row_of_warp() {
  return int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / kWarpSize;
}

/// The warp reads a row once and writes it to place(c) for all c < copies, unless that is null;
/// four loads of a lane are under way at a time.
template <class Unit, class Place>
__device__ __forceinline__ void copy_row(const Unit* from, int64_t units, int copies,
                                         const Place& place) {
  constexpr int kAtOnce = 4;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int64_t first = 0; first < units; first += kAtOnce * kWarpSize) {
    Unit parts[kAtOnce];
    const int64_t own = first + lane;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (own + i * kWarpSize < units) parts[i] = from[own + i * kWarpSize];
    }
    for (int c = 0; c < copies; ++c) {
      Unit* const to = place(c);
      if (to == nullptr) continue;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (own + i * kWarpSize < units) to[own + i * kWarpSize] = parts[i];
      }
    }
  }
}

template <class Unit>
__global__ void __launch_bounds__(kThreads) gather_row(Move<Unit> a) {
  const int64_t row = row_of_warp();
  if (row >= a.rows) return;
  const int index = a.index[row];
  if (index < 0 || index >= a.limit) return;
  copy_row(a.from + int64_t{index / a.slots} * a.units, a.units, 1,
           [&](int) { return a.to + row * a.units; });
}

/// Lane s has the place of copy s, so that a row is read once per 32 slots.
template <class Unit>
__global__ void __launch_bounds__(kThreads) scatter_row(Move<Unit> a) {
  const int64_t row = row_of_warp();
  if (row >= a.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int first = 0; first < a.slots; first += kWarpSize) {
    const int copies = std::min(a.slots - first, int{kWarpSize});
    const int index = lane < copies ? a.index[row * a.slots + first + lane] : -1;
    copy_row(a.from + row * a.units, a.units, copies, [&](int c) -> Unit* {
      const int to = __shfl_sync(kWholeWarp, index, c);
      return to >= 0 && to < a.limit ? a.to + to * a.units : nullptr;
    });
  }
}

/// The rows, not the numbers in them: whole packs, or else what one number is.
struct Rows {
  const TensorView& to;
  const ConstTensorView& from;
  const ConstTensorView& index;
  int64_t limit;
  int64_t slots;
  bool scatter;
};
void move(Stream& stream, const Rows& a) {
  const int64_t rows = (a.scatter ? a.from : a.to).shape()[0];
  const int64_t bytes = a.from.shape()[1] * size_of(a.from.dtype());
  if (bytes == 0) return;
  const auto with_units = [&]<class Unit>(Unit) {
    launch(stream, a.scatter ? scatter_row<Unit> : gather_row<Unit>, dim3(blocks_for(rows, kWarps)),
           kThreads, 0,
           Move<Unit>{.to = static_cast<Unit*>(a.to.data()),
                      .from = static_cast<const Unit*>(a.from.data()),
                      .index = a.index.as<int32_t>().data(),
                      .rows = rows,
                      .limit = a.limit,
                      .units = bytes / static_cast<int64_t>(sizeof(Unit)),
                      .slots = static_cast<int>(a.slots)});
  };
  const auto* to = static_cast<const char*>(a.to.data());
  const auto* from = static_cast<const char*>(a.from.data());
  if (in_packs(to, bytes) && in_packs(from, bytes)) return with_units(uint4{});
  a.from.dtype() == DType::kF32 ? with_units(uint32_t{}) : with_units(uint16_t{});
}

template <class T>
struct Sum {
  T* y;
  const T* x;
  const int* row_of;
  const T* base;  // may be null
  int64_t tokens;
  int64_t rows;
  int64_t dim;
  int slots;
};

template <class T, int kStep>
struct alignas(kStep * sizeof(T)) Numbers {
  T values[kStep];
};

/// A warp per token, a lane kStep numbers of it at a time.
template <class T, int kStep>
__global__ void __launch_bounds__(kThreads) sum_rows(Sum<T> a) {
  using Values = Numbers<T, kStep>;
  const int64_t token = row_of_warp();
  if (token >= a.tokens) return;
  const int* const rows = a.row_of + token * a.slots;
  const auto at = [](const T* x) { return *reinterpret_cast<const Values*>(x); };
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int64_t d = int64_t{lane} * kStep; d < a.dim; d += kWarpSize * kStep) {
    float sums[kStep] = {};
    if (a.base != nullptr) {
      const Values base = at(a.base + token * a.dim + d);
      for (int i = 0; i < kStep; ++i) sums[i] = to_float(base.values[i]);
    }
#pragma unroll 4
    for (int s = 0; s < a.slots; ++s) {
      const int64_t row = rows[s];
      if (row < 0 || row >= a.rows) continue;
      const Values x = at(a.x + row * a.dim + d);
      for (int i = 0; i < kStep; ++i) sums[i] += to_float(x.values[i]);
    }
    Values y;
    for (int i = 0; i < kStep; ++i) y.values[i] = from_float<T>(sums[i]);
    *reinterpret_cast<Values*>(a.y + token * a.dim + d) = y;
  }
}

}  // namespace

void gather_rows(Stream& stream, const GatherRows& a) {
  if (!a.row_of.empty()) return move(stream, {a.y, a.x, a.row_of, a.y.shape()[0], a.slots, true});
  move(stream, {a.y, a.x, a.source_of, a.x.shape()[0] * a.slots, a.slots, false});
}

void scatter_rows(Stream& stream, const ScatterRows& a) {
  move(stream, {a.y, a.x, a.order, a.y.shape()[0], 1, true});
}

void gather_sum(Stream& stream, const GatherSum& a) {
  const int64_t tokens = a.y.shape()[0];
  const int64_t dim = a.y.shape()[1];
  with_float_type(a.x.dtype(), [&]<class T>() {
    const Sum<T> sum{.y = a.y.as<T>().data(),
                     .x = a.x.as<T>().data(),
                     .row_of = a.row_of.as<int32_t>().data(),
                     .base = a.base.empty() ? nullptr : a.base.as<T>().data(),
                     .tokens = tokens,
                     .rows = a.x.shape()[0],
                     .dim = dim,
                     .slots = static_cast<int>(a.row_of.shape()[1])};
    const bool packed = in_packs(sum.y, dim) && in_packs(sum.x, dim) && in_packs(sum.base, dim);
    launch(stream, packed ? sum_rows<T, Pack<T>::kSize> : sum_rows<T, 1>,
           dim3(blocks_for(tokens, kWarps)), kThreads, 0, sum);
  });
}

}  // namespace tessera::gpu
