#include "checkpoint/state_digest.h"

#include <gtest/gtest.h>

#include "checkpoint/digest.h"
#include "checkpoint/file_hash.h"
#include "checkpoint/file_io.h"
#include "tests/checkpoint/sample_run.h"

namespace tessera {
namespace {

using support::SampleState;
using support::Tensor;

uint64_t share(const SampleState& state, int threads) {
  Stream stream(Device{}, threads);
  uint64_t sum = 0;
  for (const TensorGroup& group : state.groups()) sum += state_digest(stream, group.tensors);
  return sum;
}

TEST(StateDigest, IsTheSumOfItsFormula) {
  Stream stream(Device{}, 2);
  const Tensor a = support::from_doubles(DType::kF32, {2}, std::vector<double>{1, 2});
  const Tensor b = support::from_doubles(DType::kF32, {3}, std::vector<double>{-1, 0, 4});
  const std::vector<NamedTensor> tensors{{"a", Shard::replicated({2}), a.view()},
                                         {"b", Shard::replicated({3}), b.view()}};
  uint64_t expected = 0;
  for (const NamedTensor& tensor : tensors) {
    const std::span<const std::byte> bytes{static_cast<const std::byte*>(tensor.data.data()),
                                           static_cast<size_t>(tensor.data.bytes())};
    expected += (hash64(bytes_of(tensor.name)) | 1) *
                digest(DType::kF32, tensor.whole, tensor.box, 0, bytes);
  }
  EXPECT_EQ(state_digest(stream, tensors), expected);
  EXPECT_EQ(state_digest(stream, {}), 0u);
  // Of "a" and of nothing, by xxHash's own command line tool.
  EXPECT_EQ(hash64(bytes_of("a")), 0xE6C632B61E964E1FU);
  EXPECT_EQ(hash64({}), 0x2D06800538D394C2U);
}

TEST(StateDigest, DependsNeitherOnRanksNorOnThreads) {
  constexpr int64_t kRows = 12'000;  // tensors of several pieces
  const uint64_t expected = share(SampleState(3, 0, 1, kRows), 1);
  EXPECT_EQ(share(SampleState(3, 0, 1, kRows), 3), expected);
  for (const int parts : {2, 5}) {
    uint64_t sum = 0;
    for (int part = 0; part < parts; ++part) sum += share(SampleState(3, part, parts, kRows), 2);
    EXPECT_EQ(sum, expected) << parts;
  }
  EXPECT_NE(share(SampleState(4, 0, 1, kRows), 1), expected);
}

TEST(StateDigest, SeesEqualTensorsUnderExchangedNames) {
  Stream stream(Device{}, 1);
  const Tensor a = support::from_doubles(DType::kF32, {2}, std::vector<double>{1, 2});
  const Tensor b = support::from_doubles(DType::kF32, {2}, std::vector<double>{3, 4});
  const Shard whole = Shard::replicated({2});
  const std::vector<NamedTensor> one{{"a", whole, a.view()}, {"b", whole, b.view()}};
  const std::vector<NamedTensor> other{{"b", whole, a.view()}, {"a", whole, b.view()}};
  EXPECT_NE(state_digest(stream, one), state_digest(stream, other));
}

}  // namespace
}  // namespace tessera
