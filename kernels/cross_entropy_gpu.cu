#include <algorithm>
#include <limits>

#include "kernels/core/device_check.cuh"
#include "kernels/core/pointwise.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/cross_entropy.h"

// The logits are read once for the stats, with a maximum that runs along, and once for the
// gradient, which is written once. A block has a piece of a row, so that a chunk of a few hundred
// tokens fills any GPU evenly; four packs of each lane are under way at a time.

namespace tessera::gpu {
namespace {

constexpr int kAhead = 4;  // packs of a lane
constexpr int kPiece = 16384;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// The maximum of nothing: finite, so that exp(l - m) is 0 for l = -inf, and not NaN.
constexpr float kLowest = std::numeric_limits<float>::lowest();

/// A maximum m and sum exp(l - m).
struct Part {
  float maximum = kLowest;
  float sum = 0;
};

template <int N, int kPacks>
__device__ __forceinline__ void add_numbers(Part& part, const Floats<N> (&x)[kPacks]) {
  float most = part.maximum;
  for (const Floats<N>& pack : x) {
    for (const float value : pack.at) most = fmaxf(most, value);
  }
  // Not when they are equal: both may be infinite.
  if (most > part.maximum) part.sum *= __expf(part.maximum - most);
  part.maximum = most;
  for (const Floats<N>& pack : x) {
    for (const float value : pack.at) part.sum += __expf(value - most);
  }
}

__device__ __forceinline__ float block_max(float value, float* scratch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  value = warp_max(value);
  if (lane == 0) scratch[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  return warp_max(lane < kMapThreads / kWarpSize ? scratch[lane] : kLowest);
}

template <class T>
struct Stats {
  Part* parts;  // [tokens, pieces]
  const T* logits;
  const int32_t* targets;
  int64_t columns;
  int64_t words;  // columns that are no padding
  bool packed;
};

template <class T>
__global__ void __launch_bounds__(kMapThreads, 4) find_parts(Stats<T> a) {
  constexpr int kN = kGroup<T>;
  constexpr int64_t kStep = kMapThreads * kN;
  SharedMemory shared;
  float* const maxima = shared.take<float>(kWarpSize);
  float* const sums = shared.take<float>(kWarpSize);
  const int64_t t = blockIdx.x;
  if (a.targets[t] < 0) return;
  const T* const row = a.logits + t * a.columns;
  const int64_t begin = int64_t{blockIdx.y} * kPiece;
  const int64_t end = std::min(begin + kPiece, a.words);
  Part part;
  int64_t v = begin + static_cast<int64_t>(threadIdx.x) * kN;
  for (; a.packed && v + (kAhead - 1) * kStep + kN <= end; v += kAhead * kStep) {
    Floats<kN> x[kAhead];
    for (int k = 0; k < kAhead; ++k) x[k] = load_floats<kN>(row + v + k * kStep);
    add_numbers(part, x);
  }
  for (; v < end; v += kStep) {
    if (a.packed && v + kN <= end) {
      add_numbers<kN, 1>(part, {load_floats<kN>(row + v)});
      continue;
    }
    for (int64_t one = v; one < v + kN && one < end; ++one) {
      add_numbers<1, 1>(part, {load_floats<1>(row + one)});
    }
  }
  const float maximum = block_max(part.maximum, maxima);
  const float sum = block_sum(part.sum * __expf(part.maximum - maximum), sums);
  if (threadIdx.x == 0) a.parts[t * gridDim.y + blockIdx.y] = {maximum, sum};
}

/// All parts, which are `stride` apart, as one: in double and in order.
struct Total {
  float maximum;
  double sum;
};
__device__ Total add_parts(const float* parts, int64_t count, int64_t stride) {
  Total all{kLowest, 0};
  for (int64_t i = 0; i < count; ++i) all.maximum = fmaxf(all.maximum, parts[i * stride]);
  for (int64_t i = 0; i < count; ++i) {
    const double maximum = parts[i * stride];
    all.sum += parts[i * stride + 1] * exp(maximum - double{all.maximum});
  }
  return all;
}

template <class T>
__global__ void __launch_bounds__(kMapThreads)
    put_stats(float* stats, Stats<T> a, int64_t first, int64_t vocabulary, int64_t tokens,
              int pieces) {
  const int64_t t = int64_t{blockIdx.x} * kMapThreads + threadIdx.x;
  if (t >= tokens) return;
  Total all{kLowest, 0};
  float target = kMinusInfinity;
  if (a.targets[t] >= 0) {
    all = add_parts(reinterpret_cast<const float*>(a.parts + t * pieces), pieces, 2);
    device_check(a.targets[t] < vocabulary, "cross_entropy: a target is not in the vocabulary");
    const int64_t column = a.targets[t] - first;
    if (column >= 0 && column < a.words) target = to_float(a.logits[t * a.columns + column]);
  }
  float* const to = stats + t * kSoftmaxStats;
  to[0] = all.maximum;
  to[1] = static_cast<float>(all.sum);
  to[2] = target;
}

__global__ void __launch_bounds__(kMapThreads)
    merge(float* losses, float* hits, float* merged, const float* stats, const int32_t* targets,
          int64_t shards, int64_t tokens) {
  const int64_t t = int64_t{blockIdx.x} * kMapThreads + threadIdx.x;
  if (t >= tokens) return;
  const float* const of_token = stats + t * kSoftmaxStats;
  const int64_t stride = tokens * kSoftmaxStats;
  const Total all = add_parts(of_token, shards, stride);
  float target = kMinusInfinity;
  for (int64_t shard = 0; shard < shards; ++shard) {
    const float here = of_token[shard * stride + 2];
    if (here != kMinusInfinity) target = here;  // also when it is NaN
  }
  float* const to = merged + t * kSoftmaxStats;
  to[0] = all.maximum;
  to[1] = static_cast<float>(all.sum);
  to[2] = target;
  const double loss = log(all.sum) + (double{all.maximum} - double{target});
  const bool counts = targets[t] >= 0;
  losses[t] = counts ? static_cast<float>(loss) : 0.0f;
  if (hits != nullptr) hits[t] = counts && target >= all.maximum ? 1.0f : 0.0f;
}

template <class T, class D>
struct Gradient {
  static constexpr int kN = std::min(kGroup<T>, kGroup<D>);
  static constexpr int kStep = kMapThreads * kN;
  D* dlogits;
  const T* logits;
  const float* merged;
  const int32_t* targets;
  int64_t columns;
  int64_t words;
  int64_t first;
  const float* scale_from;  // null: scale
  float scale;
  bool packed;
};

template <class T, class D>
__global__ void __launch_bounds__(kMapThreads, 4) put_gradient(Gradient<T, D> a) {
  constexpr int kN = a.kN;
  const int64_t t = blockIdx.x;
  const T* const row = a.logits + t * a.columns;
  D* const to = a.dlogits + t * a.columns;
  const bool counts = a.targets[t] >= 0;
  const int64_t target = counts ? a.targets[t] - a.first : -1;
  const int64_t words = counts ? a.words : 0;
  const float offset = a.merged[t * kSoftmaxStats];
  const float scale = a.scale_from == nullptr ? a.scale : *a.scale_from;
  const float factor = scale / a.merged[t * kSoftmaxStats + 1];
  const auto gradient = [=](float logit, int64_t v) {
    return __expf(logit - offset) * factor - (v == target ? scale : 0.0f);
  };
  const int64_t begin =
      int64_t{blockIdx.y} * kAhead * a.kStep + static_cast<int64_t>(threadIdx.x) * kN;
  const auto whole = [&](int k) { return a.packed && begin + k * a.kStep + kN <= words; };
  Floats<kN> x[kAhead] = {};
  for (int k = 0; k < kAhead; ++k) {
    if (whole(k)) x[k] = load_floats<kN>(row + begin + k * a.kStep);
  }
  for (int k = 0; k < kAhead; ++k) {
    const int64_t first = begin + k * a.kStep;
    if (whole(k)) {
      for (int i = 0; i < kN; ++i) x[k].at[i] = gradient(x[k].at[i], first + i);
      store_floats(to + first, x[k]);
      continue;
    }
    for (int64_t v = first; v < first + kN && v < a.columns; ++v) {
      to[v] = from_float<D>(v < words ? gradient(to_float(row[v]), v) : 0.0f);
    }
  }
}

const float* numbers_or_null(const ConstTensorView& x) {
  return x.empty() ? nullptr : x.as<float>().data();
}

int64_t words_of(int64_t columns, int64_t first, int64_t vocabulary) {
  return std::clamp<int64_t>(vocabulary - first, 0, columns);
}

}  // namespace

void softmax_stats(Stream& stream, const SoftmaxStats& a) {
  const int64_t tokens = a.logits.shape()[0];
  const int64_t columns = a.logits.shape()[1];
  const int64_t words = words_of(columns, a.first, a.vocabulary);
  const unsigned pieces = blocks_for(words, kPiece);
  Part* const parts = Workspace(stream, "softmax_stats").take<Part>(tokens * pieces);
  with_float_type(a.logits.dtype(), [&]<class T>() {
    const T* const logits = a.logits.as<T>().data();
    const Stats<T> of{.parts = parts,
                      .logits = logits,
                      .targets = a.targets.as<int32_t>().data(),
                      .columns = columns,
                      .words = words,
                      .packed = in_packs(logits, columns)};
    launch(stream, find_parts<T>, dim3(static_cast<unsigned>(tokens), pieces), kMapThreads,
           2 * shared_bytes_of<float>(kWarpSize), of);
    launch(stream, put_stats<T>, dim3(blocks_for(tokens, kMapThreads)), kMapThreads, 0,
           a.stats.as<float>().data(), of, a.first, a.vocabulary, tokens, static_cast<int>(pieces));
  });
}

void merge_softmax_stats(Stream& stream, const MergeSoftmaxStats& a) {
  const int64_t shards = a.stats.shape()[0];
  const int64_t tokens = a.stats.shape()[1];
  launch(stream, merge, dim3(blocks_for(tokens, kMapThreads)), kMapThreads, 0,
         a.losses.as<float>().data(), a.hits.empty() ? nullptr : a.hits.as<float>().data(),
         a.merged.as<float>().data(), a.stats.as<float>().data(), a.targets.as<int32_t>().data(),
         shards, tokens);
}

void cross_entropy_gradient(Stream& stream, const CrossEntropyGradient& a) {
  const int64_t tokens = a.logits.shape()[0];
  const int64_t columns = a.logits.shape()[1];
  with_float_type(a.logits.dtype(), [&]<class T>() {
    with_float_type(a.dlogits.dtype(), [&]<class D>() {
      D* const dlogits = a.dlogits.as<D>().data();
      const T* const logits = a.logits.as<T>().data();
      const Gradient<T, D> of{.dlogits = dlogits,
                              .logits = logits,
                              .merged = a.merged.as<float>().data(),
                              .targets = a.targets.as<int32_t>().data(),
                              .columns = columns,
                              .words = words_of(columns, a.first, a.vocabulary),
                              .first = a.first,
                              .scale_from = numbers_or_null(a.scale_from),
                              .scale = a.scale,
                              .packed = in_packs(dlogits, columns) && in_packs(logits, columns)};
      const unsigned pieces = blocks_for(columns, int64_t{kAhead} * of.kStep);
      launch(stream, put_gradient<T, D>, dim3(static_cast<unsigned>(tokens), pieces), kMapThreads,
             0, of);
    });
  });
}

}  // namespace tessera::gpu
