#include "checkpoint/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace tessera {

namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;

using ByteTable = std::array<uint32_t, 256>;

// Slicing by 8: table k holds the CRC of a byte followed by k zero bytes.
constexpr std::array<ByteTable, 8> make_byte_tables() {
  std::array<ByteTable, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables[k - 1][byte];
      tables[k][byte] = (before >> 8) ^ tables[0][before & 0xFF];
    }
  }
  return tables;
}
constexpr std::array<ByteTable, 8> kByteTables = make_byte_tables();

uint64_t load_u64(const std::byte* at) {
  uint64_t word = 0;
  std::memcpy(&word, at, sizeof word);
  return word;
}

#if defined(__x86_64__)

// One instruction takes 8 bytes in 3 cycles but a new one starts every cycle: three streams keep
// it busy. They are joined by shifting the CRC of the first two over the bytes that follow them.
constexpr size_t kStreamBytes = 4096;

// A linear map of the 32 CRC bits: column i is the image of bit i.
using BitMatrix = std::array<uint32_t, 32>;

constexpr uint32_t multiply(const BitMatrix& matrix, uint32_t vector) {
  uint32_t sum = 0;
  for (size_t bit = 0; bit < 32; ++bit) sum ^= ((vector >> bit) & 1) != 0 ? matrix[bit] : 0;
  return sum;
}

// The map "append kStreamBytes zero bytes" as four lookups, one per byte of the CRC.
constexpr std::array<ByteTable, 4> make_shift_tables() {
  BitMatrix shift{};
  shift[0] = kPolynomial;
  for (size_t bit = 1; bit < 32; ++bit) shift[bit] = uint32_t{1} << (bit - 1);
  for (size_t bits = 1; bits < 8 * kStreamBytes; bits *= 2) {
    BitMatrix squared{};
    for (size_t bit = 0; bit < 32; ++bit) squared[bit] = multiply(shift, shift[bit]);
    shift = squared;
  }
  std::array<ByteTable, 4> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    for (uint32_t place = 0; place < 4; ++place) {
      tables[place][byte] = multiply(shift, byte << (8 * place));
    }
  }
  return tables;
}
constexpr std::array<ByteTable, 4> kShiftTables = make_shift_tables();

uint32_t shift_stream(uint32_t crc) {
  return kShiftTables[0][crc & 0xFF] ^ kShiftTables[1][(crc >> 8) & 0xFF] ^
         kShiftTables[2][(crc >> 16) & 0xFF] ^ kShiftTables[3][crc >> 24];
}

__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(std::span<const std::byte> data,
                                                        uint32_t crc) {
  const std::byte* at = data.data();
  size_t left = data.size();
  uint64_t sum = ~crc;
  while (left >= 3 * kStreamBytes) {
    uint64_t second = 0;
    uint64_t third = 0;
    for (size_t i = 0; i < kStreamBytes; i += 8) {
      sum = _mm_crc32_u64(sum, load_u64(at + i));
      second = _mm_crc32_u64(second, load_u64(at + kStreamBytes + i));
      third = _mm_crc32_u64(third, load_u64(at + 2 * kStreamBytes + i));
    }
    const uint32_t joined =
        shift_stream(static_cast<uint32_t>(sum)) ^ static_cast<uint32_t>(second);
    sum = shift_stream(joined) ^ static_cast<uint32_t>(third);
    at += 3 * kStreamBytes;
    left -= 3 * kStreamBytes;
  }
  for (; left >= 8; at += 8, left -= 8) sum = _mm_crc32_u64(sum, load_u64(at));
  auto rest = static_cast<uint32_t>(sum);
  for (; left > 0; ++at, --left) rest = _mm_crc32_u8(rest, static_cast<uint8_t>(*at));
  return ~rest;
}

#endif

}  // namespace

uint32_t crc32c_portable(std::span<const std::byte> data, uint32_t crc) {
  const std::byte* at = data.data();
  size_t left = data.size();
  uint32_t sum = ~crc;
  for (; left >= 8; at += 8, left -= 8) {
    const uint64_t word = load_u64(at) ^ sum;
    sum = 0;
    for (size_t k = 0; k < 8; ++k) sum ^= kByteTables[7 - k][(word >> (8 * k)) & 0xFF];
  }
  for (; left > 0; ++at, --left) {
    sum = (sum >> 8) ^ kByteTables[0][(sum ^ static_cast<uint32_t>(*at)) & 0xFF];
  }
  return ~sum;
}

uint32_t crc32c(std::span<const std::byte> data, uint32_t crc) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) return crc32c_sse42(data, crc);
#endif
  return crc32c_portable(data, crc);
}

}  // namespace tessera
