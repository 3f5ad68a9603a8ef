#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace tessera {

/// Philox4x32-10: four random words as a pure function of (key, counter).
/// The same numbers on every device, rank and thread; there is no state to save.
/// Source: Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3".
constexpr std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter_high,
                                         uint64_t counter_low) {
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
  std::array<uint32_t, 4> c{
      static_cast<uint32_t>(counter_low), static_cast<uint32_t>(counter_low >> 32),
      static_cast<uint32_t>(counter_high), static_cast<uint32_t>(counter_high >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

/// Uniform in (0, 1): never 0, so its logarithm is finite.
inline double uniform(uint32_t word) {
  return (static_cast<double>(word) + 0.5) * 0x1p-32;
}

/// Standard normal from two words (Box-Muller, cosine branch).
inline double normal(uint32_t a, uint32_t b) {
  return std::sqrt(-2.0 * std::log(uniform(a))) * std::cos(6.283185307179586 * uniform(b));
}

/// 64-bit FNV-1a, for turning a name into a random key.
constexpr uint64_t hash_name(const char* text) {
  uint64_t hash = 0xCBF29CE484222325;
  for (; *text != '\0'; ++text) {
    hash = (hash ^ static_cast<uint8_t>(*text)) * 0x100000001B3;
  }
  return hash;
}

}  // namespace tessera
