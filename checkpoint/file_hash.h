#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace tessera {

/// XXH3-128 (Collet 2019, xxHash 0.8) as 32 lower-case hexadecimal digits, high half first: the
/// identity of a file. It finds accidents, not forgery.
std::string hash128(std::span<const std::byte> data);

/// XXH3-64.
uint64_t hash64(std::span<const std::byte> data);

/// hash128() of bytes that come in pieces.
class Hash128 {
 public:
  Hash128();
  ~Hash128();
  Hash128(Hash128&& other) noexcept;
  Hash128& operator=(Hash128&& other) noexcept;

  void update(std::span<const std::byte> data);
  /// Of everything so far.
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tessera
