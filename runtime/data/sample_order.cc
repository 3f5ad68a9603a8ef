#include "runtime/data/sample_order.h"

#include <bit>

#include "kernels/core/error.h"
#include "kernels/core/random.h"

namespace tessera {

namespace {

constexpr int kRounds = 8;
constexpr int64_t kMaxCount = int64_t{1} << 62;

}  // namespace

SampleOrder::SampleOrder(int64_t count, uint64_t seed)
    : count_(count), key_(seed ^ hash_name("sample order")) {
  CHECK(count >= 1 && count <= kMaxCount, "sample_order: count is ", count, ", expected 1 to ",
        kMaxCount);
  const int bits = std::bit_width(static_cast<uint64_t>(count - 1));
  left_bits_ = bits / 2;
  right_bits_ = bits - left_bits_;
}

int64_t SampleOrder::at(int64_t index) const {
  CHECK(index >= 0, "sample_order: index is ", index, ", expected at least 0");
  const auto epoch = static_cast<uint64_t>(index / count_);
  const uint64_t left_mask = (uint64_t{1} << left_bits_) - 1;
  const uint64_t right_mask = (uint64_t{1} << right_bits_) - 1;
  auto value = static_cast<uint64_t>(index % count_);
  do {
    uint64_t left = value >> right_bits_;
    uint64_t right = value & right_mask;
    for (uint64_t round = 0; round < kRounds; round += 2) {
      // Halves have at most 31 bits, so (round, half) is a distinct counter.
      left ^= philox(key_, epoch, (round << 32) | right)[0] & left_mask;
      right ^= philox(key_, epoch, ((round + 1) << 32) | left)[0] & right_mask;
    }
    value = (left << right_bits_) | right;
  } while (value >= static_cast<uint64_t>(count_));
  return static_cast<int64_t>(value);
}

}  // namespace tessera
