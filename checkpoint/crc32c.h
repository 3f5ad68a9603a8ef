#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace tessera {

/// CRC-32C (Castagnoli 1993; reflected polynomial 0x82F63B78, initial value and final xor
/// 0xFFFFFFFF): of "123456789" it is 0xE3069283. Finds every burst of up to 32 wrong bits.
/// `crc` is the result for the bytes before `data`, 0 at the start, so that
/// crc32c(b, crc32c(a)) is the CRC of a followed by b.
/// Uses the SSE4.2 instruction on three interleaved streams where the CPU has it.
uint32_t crc32c(std::span<const std::byte> data, uint32_t crc = 0);

/// The same by table, on any machine.
uint32_t crc32c_portable(std::span<const std::byte> data, uint32_t crc = 0);

}  // namespace tessera
