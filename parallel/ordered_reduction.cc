#include "parallel/ordered_reduction.h"

#include <algorithm>
#include <array>

namespace tessera {

namespace {

// The running result of one block stays in the first-level cache while all parts stream past once.
constexpr int64_t kBlock = 1024;

float load(float x) {
  return x;
}
float load(BF16 x) {
  return to_float(x);
}
int32_t load(int32_t x) {
  return x;
}
int64_t load(int64_t x) {
  return x;
}

void store(float x, float* out) {
  *out = x;
}
void store(float x, BF16* out) {
  *out = from_float<BF16>(x);
}
void store(int32_t x, int32_t* out) {
  *out = x;
}
void store(int64_t x, int64_t* out) {
  *out = x;
}

template <class T>
T sum(T a, T b) {
  return a + b;
}

// Counts may wrap around, which is defined for unsigned types only.
template <>
int32_t sum(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
template <>
int64_t sum(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

// Unlike std::max this keeps a NaN, whichever side it is on.
template <class T>
T maximum(T a, T b) {
  return a < b || b != b ? b : a;
}

template <class T, class Combine>
void reduce(std::span<const void* const> parts, int64_t elements, T* out, Combine combine) {
  using Accumulator = decltype(load(T{}));
  std::array<Accumulator, kBlock> result;
  for (int64_t begin = 0; begin < elements; begin += kBlock) {
    const size_t count = static_cast<size_t>(std::min(kBlock, elements - begin));
    const T* first = static_cast<const T*>(parts[0]) + begin;
    for (size_t i = 0; i < count; ++i) result[i] = load(first[i]);
    for (const void* part : parts.subspan(1)) {
      const T* in = static_cast<const T*>(part) + begin;
      for (size_t i = 0; i < count; ++i) result[i] = combine(result[i], load(in[i]));
    }
    for (size_t i = 0; i < count; ++i) store(result[i], out + begin + i);
  }
}

template <class T>
void reduce_as(Reduction reduction, std::span<const void* const> parts, int64_t elements,
               void* out) {
  const auto add = [](auto a, auto b) { return sum(a, b); };
  const auto larger = [](auto a, auto b) { return maximum(a, b); };
  if (reduction == Reduction::kSum) {
    reduce(parts, elements, static_cast<T*>(out), add);
  } else {
    reduce(parts, elements, static_cast<T*>(out), larger);
  }
}

}  // namespace

void reduce_in_order(DType dtype, Reduction reduction, std::span<const void* const> parts,
                     int64_t elements, void* out) {
  CHECK(!parts.empty(), "reduce_in_order: there are no parts");
  if (dtype == DType::kF32) return reduce_as<float>(reduction, parts, elements, out);
  if (dtype == DType::kBF16) return reduce_as<BF16>(reduction, parts, elements, out);
  if (dtype == DType::kI32) return reduce_as<int32_t>(reduction, parts, elements, out);
  CHECK(dtype == DType::kI64, "reduce_in_order: dtype is ", name_of(dtype),
        ", expected f32, bf16, i32 or i64");
  reduce_as<int64_t>(reduction, parts, elements, out);
}

}  // namespace tessera
