#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "parallel/ordered_reduction.h"

// A thread has 16 bytes of the result: it reads every rank's, four of them under way at a time, and
// writes the sum. So each part is read once, and the result written once.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kAhead = 4;  // parts that are read before they are added

/// In what T is summed.
__device__ float widen(float x) {
  return x;
}
__device__ float widen(BF16 x) {
  return to_float(x);
}
__device__ int32_t widen(int32_t x) {
  return x;
}
__device__ int64_t widen(int64_t x) {
  return x;
}

__device__ void narrow(float x, float& out) {
  out = x;
}
__device__ void narrow(float x, BF16& out) {
  out = from_float<BF16>(x);
}
__device__ void narrow(int32_t x, int32_t& out) {
  out = x;
}
__device__ void narrow(int64_t x, int64_t& out) {
  out = x;
}

__device__ float sum(float a, float b) {
  return a + b;
}
// Counts may wrap around, which is defined for unsigned types only.
__device__ int32_t sum(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
__device__ int64_t sum(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

/// Keeps a NaN, whichever side it is on: fmaxf would not.
template <class T>
__device__ T maximum(T a, T b) {
  return a < b || b != b ? b : a;
}

template <class T>
__device__ const T* part_of(const PartsOfRanks& parts, int rank) {
  if (rank == parts.rank) return static_cast<const T*>(parts.own);
  return reinterpret_cast<const T*>(static_cast<const char*>(parts.others) + rank * parts.stride);
}

/// The kCount elements from `first` on of all ranks' parts.
template <class T, bool kMax, int kCount, class Read, class Write>
__device__ void reduce_some(const PartsOfRanks& parts, Read read, Write write) {
  using Values = decltype(read(static_cast<const T*>(nullptr)));
  decltype(widen(T{})) result[kCount] = {};
  const auto take = [&](const Values& values, bool first) {
    for (int k = 0; k < kCount; ++k) {
      const auto value = widen(values.values[k]);
      const auto both = kMax ? maximum(result[k], value) : sum(result[k], value);
      result[k] = first ? value : both;
    }
  };
  int r = 0;
  for (; r + kAhead <= parts.ranks; r += kAhead) {
    Values ahead[kAhead];
    for (int i = 0; i < kAhead; ++i) ahead[i] = read(part_of<T>(parts, r + i));
    for (int i = 0; i < kAhead; ++i) take(ahead[i], r + i == 0);
  }
  for (; r < parts.ranks; ++r) take(read(part_of<T>(parts, r)), r == 0);
  write(result);
}

template <class T>
struct One {
  T values[1];
};

/// `packs` packs, then single elements up to `elements`: one thread for each of both.
template <class T, bool kMax>
__global__ void __launch_bounds__(kThreads)
    reduce_ranks(PartsOfRanks parts, int64_t packs, int64_t elements, T* out) {
  constexpr int kSize = Pack<T>::kSize;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (thread < packs) {
    reduce_some<T, kMax, kSize>(
        parts, [&](const T* part) { return load_pack(part + thread * kSize); },
        [&](const auto& result) {
          Pack<T> pack;
          for (int k = 0; k < kSize; ++k) narrow(result[k], pack.values[k]);
          store_pack(out + thread * kSize, pack);
        });
    return;
  }
  const int64_t element = packs * kSize + (thread - packs);
  if (element >= elements) return;
  reduce_some<T, kMax, 1>(
      parts, [&](const T* part) { return One<T>{{part[element]}}; },
      [&](const auto& result) { narrow(result[0], out[element]); });
}

template <class T>
void reduce_as(Stream& stream, Reduction reduction, const PartsOfRanks& parts, int64_t elements,
               T* out) {
  const auto aligned = [](const void* address) {
    return reinterpret_cast<uintptr_t>(address) % 16 == 0;
  };
  const bool packed =
      aligned(parts.others) && parts.stride % 16 == 0 && aligned(parts.own) && aligned(out);
  const int64_t packs = packed ? elements / Pack<T>::kSize : 0;
  const int64_t threads = packs + elements - packs * Pack<T>::kSize;
  launch(stream, reduction == Reduction::kMax ? reduce_ranks<T, true> : reduce_ranks<T, false>,
         dim3(blocks_for(threads, kThreads)), kThreads, 0, parts, packs, elements, out);
}

}  // namespace

void reduce_in_order(Stream& stream, DType dtype, Reduction reduction, const PartsOfRanks& parts,
                     int64_t elements, void* out) {
  if (dtype == DType::kF32) {
    reduce_as(stream, reduction, parts, elements, static_cast<float*>(out));
  } else if (dtype == DType::kBF16) {
    reduce_as(stream, reduction, parts, elements, static_cast<BF16*>(out));
  } else if (dtype == DType::kI32) {
    reduce_as(stream, reduction, parts, elements, static_cast<int32_t*>(out));
  } else {
    CHECK(dtype == DType::kI64, "reduce_in_order: dtype is ", name_of(dtype),
          ", expected f32, bf16, i32 or i64");
    reduce_as(stream, reduction, parts, elements, static_cast<int64_t*>(out));
  }
}

}  // namespace tessera::gpu
