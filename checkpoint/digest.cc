#include "checkpoint/digest.h"

#include <algorithm>
#include <cstring>

#include "kernels/core/error.h"

namespace tessera {

namespace {

[[gnu::always_inline]] inline uint64_t mix64(uint64_t index, uint64_t bits) {
  uint64_t x = 0x9E3779B97F4A7C15 * (index + 1) + 0xD1B54A32D192ED03 * bits;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

template <class Bits>
[[gnu::always_inline]] inline uint64_t sum_run(int64_t index, const std::byte* data,
                                               int64_t count) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits = 0;
    std::memcpy(&bits, data + i * static_cast<int64_t>(sizeof bits), sizeof bits);
    sum += mix64(static_cast<uint64_t>(index + i), bits);
  }
  return sum;
}

#if defined(__x86_64__)
// The same loop, which the compiler makes eight elements wide: AVX-512 multiplies 64-bit numbers.
template <class Bits>
[[gnu::target("avx512f,avx512dq,avx512vl,avx512bw")]] uint64_t sum_run_avx512(int64_t index,
                                                                              const std::byte* data,
                                                                              int64_t count) {
  return sum_run<Bits>(index, data, count);
}
#endif

template <class Bits>
uint64_t digest_run(int64_t index, const std::byte* data, int64_t count) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512dq")) return sum_run_avx512<Bits>(index, data, count);
#endif
  return sum_run<Bits>(index, data, count);
}

uint64_t digest_run(int64_t size, int64_t index, const std::byte* data, int64_t count) {
  switch (size) {
    case 1:
      return digest_run<uint8_t>(index, data, count);
    case 2:
      return digest_run<uint16_t>(index, data, count);
    case 4:
      return digest_run<uint32_t>(index, data, count);
    default:
      return digest_run<uint64_t>(index, data, count);
  }
}

}  // namespace

uint64_t digest(DType dtype, const Shape& whole, const Box& block, int64_t first,
                std::span<const std::byte> data) {
  const int64_t size = size_of(dtype);
  const int64_t elements = static_cast<int64_t>(data.size()) / size;
  CHECK(elements * size == static_cast<int64_t>(data.size()) && first >= 0 &&
            first + elements <= block.extents.elements(),
        "digest: ", data.size(), " bytes of ", name_of(dtype), " from element ", first,
        " are not whole elements within ", to_string(block));
  // Rows: stretches of the block that are consecutive in the whole tensor.
  const int rank = block.extents.rank();
  int split = rank - 1;
  int64_t row = block.extents[split];
  while (split > 0 && block.extents[split] == whole[split]) row *= block.extents[--split];

  uint64_t sum = 0;
  for (int64_t done = 0; done < elements;) {
    int64_t global = 0;
    int64_t stride = 1;
    int64_t rest = first + done;
    for (int axis = rank - 1; axis >= 0; --axis) {
      const int64_t index = block.begin[static_cast<size_t>(axis)] + rest % block.extents[axis];
      rest /= block.extents[axis];
      global += index * stride;
      stride *= whole[axis];
    }
    const int64_t count = std::min(row - (first + done) % row, elements - done);
    sum += digest_run(size, global, data.data() + done * size, count);
    done += count;
  }
  return sum;
}

}  // namespace tessera
