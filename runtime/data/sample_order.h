#pragma once

#include <cstdint>

namespace tessera {

/// The order in which training visits `count` samples: sample i of a run is
/// permutation_{seed, epoch}(i mod count), epoch = i / count. A pure function of
/// (count, seed, i), so a run resumes anywhere from one integer, and any rank can compute any
/// part. Every epoch visits each sample exactly once.
///
/// The permutation is an unbalanced Feistel network of 8 rounds, with Philox as round function,
/// on the smallest power of two >= count; results >= count are encrypted again until they fall
/// below it ("cycle walking"), fewer than two tries on average.
/// Sources: Luby & Rackoff 1988; Black & Rogaway, CT-RSA 2002, "Ciphers with arbitrary finite
/// domains", sections 3 and 5.
class SampleOrder {
 public:
  /// 1 <= count <= 2^62.
  SampleOrder(int64_t count, uint64_t seed);

  int64_t count() const { return count_; }
  /// `index` >= 0. In [0, count).
  int64_t at(int64_t index) const;

 private:
  int64_t count_;
  uint64_t key_;
  int left_bits_;
  int right_bits_;
};

}  // namespace tessera
