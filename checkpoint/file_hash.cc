#include "checkpoint/file_hash.h"

#include <xxhash.h>

#include "kernels/core/error.h"

namespace tessera {

namespace {

std::string hex_of(XXH128_hash_t hash) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text(32, '0');
  for (size_t i = 0; i < 16; ++i) {
    text[15 - i] = kDigits[(hash.high64 >> (4 * i)) & 0xF];
    text[31 - i] = kDigits[(hash.low64 >> (4 * i)) & 0xF];
  }
  return text;
}

}  // namespace

struct Hash128::State {
  struct Release {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Release> xxh{XXH3_createState()};
};

Hash128::Hash128() : state_(std::make_unique<State>()) {
  CHECK(state_->xxh != nullptr, "file hash: out of memory");
  XXH3_128bits_reset(state_->xxh.get());
}

Hash128::~Hash128() = default;
Hash128::Hash128(Hash128&& other) noexcept = default;
Hash128& Hash128::operator=(Hash128&& other) noexcept = default;

void Hash128::update(std::span<const std::byte> data) {
  XXH3_128bits_update(state_->xxh.get(), data.data(), data.size());
}

std::string Hash128::hex() const {
  return hex_of(XXH3_128bits_digest(state_->xxh.get()));
}

std::string hash128(std::span<const std::byte> data) {
  return hex_of(XXH3_128bits(data.data(), data.size()));
}

uint64_t hash64(std::span<const std::byte> data) {
  return XXH3_64bits(data.data(), data.size());
}

}  // namespace tessera
