#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera {

/// The bytes of a fuzzer's input, taken one by one; zeros after the end.
struct Input {
  const uint8_t* data;
  size_t size;

  uint8_t byte() { return size == 0 ? 0 : (--size, *data++); }
  /// A number from 0 to `limit` - 1; `limit` is 1 to 65,536.
  int64_t below(int64_t limit) {
    return limit <= 256 ? byte() % limit : (byte() << 8 | byte()) % limit;
  }
};

}  // namespace tessera
