#include "checkpoint/file_hash.h"

#include <gtest/gtest.h>

#include "checkpoint/file_io.h"

namespace tessera {
namespace {

// From `printf ... | xxh128sum`.
TEST(FileHash, IsWhatXxh128sumPrints) {
  EXPECT_EQ(hash128({}), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(hash128(bytes_of("tessera")), "157800c744fd9a1904c1a9b49517cd58");
}

TEST(FileHash, DoesNotDependOnThePieces) {
  const std::string text(100'000, 'x');
  Hash128 hash;
  for (size_t at = 0; at < text.size(); at += 777) {
    hash.update(bytes_of(std::string_view(text).substr(at, 777)));
  }
  EXPECT_EQ(hash.hex(), hash128(bytes_of(text)));
}

}  // namespace
}  // namespace tessera
