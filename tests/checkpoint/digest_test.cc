#include "checkpoint/digest.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/support/random_tensor.h"

namespace tessera {
namespace {

using support::random_tensor;
using support::Tensor;

std::span<const std::byte> bytes_of(const ConstTensorView& view) {
  return {static_cast<const std::byte*>(view.data()), static_cast<size_t>(view.bytes())};
}

uint64_t digest_of(const ConstTensorView& view) {
  return digest(view.dtype(), view.shape(), whole_box(view.shape()), 0, bytes_of(view));
}

template <class T>
uint64_t digest_of(const std::vector<T>& values) {
  const Shape shape{std::ssize(values)};
  return digest(kDTypeOf<T>, shape, whole_box(shape), 0, std::as_bytes(std::span(values)));
}

// Values of a Python program that follows the formula with whole numbers of any size.
TEST(Digest, HasTheDocumentedValues) {
  EXPECT_EQ(digest_of(std::vector<float>{0}), 0xE220A8397B1DCDAFU);
  EXPECT_EQ(digest_of(std::vector<float>{1, -2, 0.5, 3.25, 0, -0.0F}), 0x3D5DF8F79DB7C215U);
  EXPECT_EQ(digest_of(std::vector<int64_t>{1, -1, int64_t{1} << 40}), 0xB58365C82914F8B0U);
  EXPECT_EQ(digest_of(std::vector<uint8_t>{0, 1, 255}), 0xCE148841708B13CDU);
  EXPECT_EQ(digest_of(std::vector<BF16>(4, from_float<BF16>(1))), 0x070730C6CC5B0B69U);
}

TEST(Digest, IsTheSameForEverySplit) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI64, DType::kU8}) {
    const Tensor tensor = random_tensor(dtype, {4, 6, 5}, 3, 50);
    const uint64_t expected = digest_of(tensor.view());
    for (int axis = 0; axis < 3; ++axis) {
      for (const int parts : {1, 2, 3, 4}) {
        uint64_t sum = 0;
        for (int part = 0; part < parts; ++part) {
          const Box box = box_of(Shard::split({4, 6, 5}, axis, part, parts));
          const Tensor block(dtype, box.extents);
          for_each_stretch(box, box, whole_box({4, 6, 5}), [&](const Stretch& stretch) {
            const int64_t size = size_of(dtype);
            std::memcpy(
                static_cast<std::byte*>(block.view().data()) + stretch.in_first * size,
                static_cast<const std::byte*>(tensor.view().data()) + stretch.in_second * size,
                static_cast<size_t>(stretch.length * size));
          });
          // In two stretches, cut where no row ends.
          const int64_t cut = block.view().elements() / 2 + 1;
          const auto bytes = bytes_of(block.view());
          const auto head = static_cast<size_t>(cut * size_of(dtype));
          sum += digest(dtype, {4, 6, 5}, box, 0, bytes.first(head));
          sum += digest(dtype, {4, 6, 5}, box, cut, bytes.subspan(head));
        }
        EXPECT_EQ(sum, expected) << name_of(dtype) << " axis " << axis << " parts " << parts;
      }
    }
  }
}

TEST(Digest, SeesASwapAndASingleBit) {
  const Tensor tensor = random_tensor(DType::kF32, {100}, 4);
  const uint64_t before = digest_of(tensor.view());
  std::swap(tensor.as<float>()[3], tensor.as<float>()[4]);
  EXPECT_NE(digest_of(tensor.view()), before);
  std::swap(tensor.as<float>()[3], tensor.as<float>()[4]);
  EXPECT_EQ(digest_of(tensor.view()), before);
  auto* bytes = static_cast<uint8_t*>(tensor.view().data());
  for (int bit = 0; bit < 3200; ++bit) {
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
    EXPECT_NE(digest_of(tensor.view()), before) << bit;
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
  }
}

TEST(Digest, RefusesWhatIsNotWithinTheBlock) {
  const Tensor tensor = random_tensor(DType::kF32, {4}, 5);
  EXPECT_THROW((void)digest(DType::kF32, {4}, whole_box({4}), 1, bytes_of(tensor.view())), Error);
  EXPECT_THROW((void)digest(DType::kF32, {4}, whole_box({4}), 0, bytes_of(tensor.view()).first(3)),
               Error);
}

}  // namespace
}  // namespace tessera
