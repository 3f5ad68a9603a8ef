#include "checkpoint/crc32c.h"

#include <gtest/gtest.h>

#include <vector>

#include "checkpoint/file_io.h"
#include "kernels/core/random.h"

namespace tessera {
namespace {

std::vector<std::byte> random_bytes(size_t count) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(philox(7, 0, i)[0]);
  return bytes;
}

// One bit at a time, straight from the definition.
uint32_t crc32c_by_bits(std::span<const std::byte> data) {
  uint32_t crc = 0xFFFFFFFF;
  for (const std::byte byte : data) {
    for (int bit = 0; bit < 8; ++bit) {
      const uint32_t feedback = (crc ^ (static_cast<uint32_t>(byte) >> bit)) & 1;
      crc = (crc >> 1) ^ (feedback != 0 ? 0x82F63B78U : 0U);
    }
  }
  return ~crc;
}

TEST(Crc32c, HasThePublishedValues) {
  EXPECT_EQ(crc32c(bytes_of("123456789")), 0xE3069283);
  EXPECT_EQ(crc32c_portable(bytes_of("123456789")), 0xE3069283);
  EXPECT_EQ(crc32c({}), 0U);
  const std::vector<std::byte> zeros(32);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(zeros), 0x8A9136AA);
  const std::vector<std::byte> ones(32, std::byte{0xFF});
  EXPECT_EQ(crc32c(ones), 0x62A8AB43);
}

// Lengths around those at which the three streams and the words of 8 bytes begin and end.
TEST(Crc32c, BothImplementationsFollowTheDefinition) {
  const std::vector<std::byte> bytes = random_bytes(40'000);
  for (const size_t length : {1, 7, 8, 9, 63, 4095, 4096, 12'287, 12'288, 12'289, 24'576, 36'873}) {
    for (const size_t begin : {0, 1, 5}) {
      const auto part = std::span(bytes).subspan(begin, length);
      const uint32_t expected = crc32c_by_bits(part);
      EXPECT_EQ(crc32c(part), expected) << length << " from " << begin;
      EXPECT_EQ(crc32c_portable(part), expected) << length << " from " << begin;
    }
  }
}

TEST(Crc32c, GoesOnFromAnEarlierPart) {
  const std::vector<std::byte> bytes = random_bytes(20'000);
  const std::span<const std::byte> all(bytes);
  for (const size_t cut : {0, 1, 13, 12'288, 19'999}) {
    EXPECT_EQ(crc32c(all.subspan(cut), crc32c(all.first(cut))), crc32c(all)) << cut;
    EXPECT_EQ(crc32c_portable(all.subspan(cut), crc32c(all.first(cut))), crc32c(all)) << cut;
  }
}

}  // namespace
}  // namespace tessera
