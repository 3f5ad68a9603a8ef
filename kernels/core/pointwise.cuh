#pragma once

#include <algorithm>
#include <bit>

#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/ptx.cuh"

/// What kernels that go over memory once have in common: numbers in registers as f32, read and
/// written 16 bytes at a time, and the ways to hand out elements and rows to lanes.
namespace tessera::gpu {

inline constexpr int kMapThreads = 256;

/// N numbers in registers.
template <int N>
struct Floats {
  float at[N];
};

/// N numbers of T as they lie in memory, moved at once: of 16 bytes at most, aligned to their size.
/// May be read as another type than they were written in.
template <class T, int N>
struct [[gnu::may_alias]] alignas(N * sizeof(T)) Chunk {
  T values[N];
};
template <class T, int N>
__device__ __forceinline__ Chunk<T, N> load_chunk(const void* from) {
  return *reinterpret_cast<const Chunk<T, N>*>(from);
}
template <class T, int N>
__device__ __forceinline__ void store_chunk(void* to, const Chunk<T, N>& chunk) {
  if constexpr (sizeof(chunk) == 16) {
    const auto words = std::bit_cast<uint4>(chunk);
    store_words(to, words.x, words.y, words.z, words.w);
  } else if constexpr (sizeof(chunk) == 8) {
    const auto words = std::bit_cast<uint2>(chunk);
    store_words(to, words.x, words.y);
  } else {
    *static_cast<Chunk<T, N>*>(to) = chunk;
  }
}

/// `from` is aligned to N numbers, at most to 16 bytes. N is 1 or a power of two. Pairs of bf16 are
/// moved as words: the compiler makes one access of them.
template <int N>
__device__ __forceinline__ Floats<N> load_floats(const BF16* from) {
  static_assert(N <= Pack<BF16>::kSize);
  if constexpr (N == 1) {
    return {{to_float(*from)}};
  } else {
    const auto words = load_chunk<uint32_t, N / 2>(from);
    Floats<N> x;
    for (int i = 0; i < N / 2; ++i) {
      x.at[2 * i] = __uint_as_float(words.values[i] << 16);
      x.at[2 * i + 1] = __uint_as_float(words.values[i] & 0xFFFF0000u);
    }
    return x;
  }
}
template <int N>
__device__ __forceinline__ Floats<N> load_floats(const float* from) {
  constexpr int kAtOnce = std::min(N, Pack<float>::kSize);
  Floats<N> x;
  for (int first = 0; first < N; first += kAtOnce) {
    const auto chunk = load_chunk<float, kAtOnce>(from + first);
    for (int i = 0; i < kAtOnce; ++i) x.at[first + i] = chunk.values[i];
  }
  return x;
}

/// Rounded to nearest even by the hardware's instruction for two numbers at once.
template <int N>
__device__ __forceinline__ void store_floats(BF16* to, const Floats<N>& x) {
  static_assert(N <= Pack<BF16>::kSize);
  if constexpr (N == 1) {
    *to = {static_cast<uint16_t>(pack_bf16(x.at[0], 0.0f))};
  } else {
    Chunk<uint32_t, N / 2> words;
    for (int i = 0; i < N / 2; ++i) words.values[i] = pack_bf16(x.at[2 * i], x.at[2 * i + 1]);
    store_chunk(to, words);
  }
}
template <int N>
__device__ __forceinline__ void store_floats(float* to, const Floats<N>& x) {
  constexpr int kAtOnce = std::min(N, Pack<float>::kSize);
  for (int first = 0; first < N; first += kAtOnce) {
    Chunk<float, kAtOnce> chunk;
    for (int i = 0; i < kAtOnce; ++i) chunk.values[i] = x.at[first + i];
    store_chunk(to + first, chunk);
  }
}

/// N numbers of any type from one place to another, unchanged.
template <int N, class T>
__device__ __forceinline__ void copy_numbers(T* to, const T* from) {
  if constexpr (sizeof(T) < 4 && N * sizeof(T) >= 4) {
    constexpr int kWords = N * sizeof(T) / 4;
    store_chunk(to, load_chunk<uint32_t, kWords>(from));
  } else {
    store_chunk(to, load_chunk<T, N>(from));
  }
}

/// How many numbers a lane moves at once, if the widest access is of T: 16 bytes of it.
template <class T>
inline constexpr int kGroup = Pack<T>::kSize;

/// 1 / (1 + e^-x), relative error below 2e-6 for |x| < 20.
__device__ __forceinline__ float device_sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

/// op.template load<N>(i), then op.template store<N>(i, loaded) for all i < count, each once. A
/// lane has two groups of Op::kGroup elements, both read before either is written. `packed`: every
/// address is a multiple of a group; else, and in the last block, lanes go one by one.
template <class Op>
__global__ void __launch_bounds__(kMapThreads) map_elements(Op op, int64_t count, bool packed) {
  constexpr int kN = Op::kGroup;
  const int64_t begin = int64_t{blockIdx.x} * 2 * kMapThreads * kN;
  const int64_t end = std::min(begin + 2 * kMapThreads * kN, count);
  if (packed && end - begin == 2 * kMapThreads * kN) {
    const int64_t first = begin + static_cast<int64_t>(threadIdx.x) * kN;
    const int64_t second = first + kMapThreads * kN;
    const auto one = op.template load<kN>(first);
    const auto two = op.template load<kN>(second);
    op.template store<kN>(first, one);
    op.template store<kN>(second, two);
    return;
  }
  for (int64_t i = begin + threadIdx.x; i < end; i += kMapThreads) {
    op.template store<1>(i, op.template load<1>(i));
  }
}
template <class Op>
void launch_map(Stream& stream, const Op& op, int64_t count, bool packed) {
  launch(stream, map_elements<Op>, dim3(blocks_for(count, int64_t{2} * kMapThreads * Op::kGroup)),
         kMapThreads, 0, op, count, packed);
}
/// Whether packs can be read from all of these addresses.
template <class... T>
bool aligned_to_packs(const T*... addresses) {
  return ((reinterpret_cast<uintptr_t>(addresses) % 16 == 0) && ...);
}

/// Rows of `items` each, handed out to blocks of kMapThreads lanes: several short rows to a block,
/// several blocks (along y) to a long one. No lane divides by more than 32 bits.
struct RowSplit {
  int64_t rows;
  int items;
  int rows_each;  // rows of a block

  RowSplit(int64_t of_rows, int64_t of_items)
      : rows(of_rows),
        items(static_cast<int>(of_items)),
        rows_each(
            static_cast<int>(std::max<int64_t>(1, kMapThreads / std::max<int64_t>(1, of_items)))) {}
  dim3 grid(unsigned z = 1) const {
    return {blocks_for(rows, rows_each), rows_each > 1 ? 1 : blocks_for(items, kMapThreads), z};
  }
};
/// A lane's item, or none: item < 0.
struct RowPlace {
  int64_t row;
  int item;
};
__device__ __forceinline__ RowPlace place_in(const RowSplit& split) {
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t first = int64_t{blockIdx.x} * split.rows_each;
  if (split.rows_each == 1) {
    const int item = static_cast<int>(blockIdx.y) * kMapThreads + lane;
    return {first, item < split.items ? item : -1};
  }
  const int local = lane / split.items;
  const bool inside = local < split.rows_each && first + local < split.rows;
  return {first + local, inside ? lane - local * split.items : -1};
}

}  // namespace tessera::gpu
