#include "launcher/byte_size.h"

#include <gtest/gtest.h>

#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(ByteSize, UnitsArePowersOf1000Or1024) {
  EXPECT_EQ(parse_byte_size("1B", "x"), 1);
  EXPECT_EQ(parse_byte_size("7KB", "x"), 7000);
  EXPECT_EQ(parse_byte_size("5GB", "x"), 5'000'000'000);
  EXPECT_EQ(parse_byte_size("2TB", "x"), 2'000'000'000'000);
  EXPECT_EQ(parse_byte_size("3KiB", "x"), 3072);
  EXPECT_EQ(parse_byte_size("512MiB", "x"), int64_t{512} << 20);
  EXPECT_EQ(parse_byte_size("1GiB", "x"), int64_t{1} << 30);
  EXPECT_EQ(parse_byte_size("1048576TiB", "x"), int64_t{1} << 60);
}

TEST(ByteSize, AnythingElseIsRefused) {
  for (const char* text : {"", "5", "GB", "0GB", "-5GB", "5 GB", "5gb", "1.5GB", "5GBs", "+5GB",
                           "1048577TiB", "99999999999999999999B", "0x5GB"}) {
    support::expect_error([&] { parse_byte_size(text, "--shard-size"); },
                          concat("--shard-size is \"", text, "\", expected a whole number"));
  }
}

}  // namespace
}  // namespace tessera
