#include "checkpoint/wire_size.h"

#include <gtest/gtest.h>

#include "checkpoint/manifest.pb.h"

namespace tessera {
namespace {

int64_t bound_of(const std::string& bytes) {
  return parsed_size_bound(bytes, *wire::Manifest::descriptor());
}

// A message with all kinds of fields in numbers.
wire::Manifest sample(int tensors, int slices) {
  wire::Manifest manifest;
  manifest.set_writer_version("tessera 1");
  manifest.add_determinism_flags("a flag that is longer than a short string");
  manifest.mutable_parent()->set_step(7);
  wire::File& file = *manifest.add_files();
  for (uint32_t i = 0; i < 1000; ++i) file.add_block_crc32c(i);
  for (int t = 0; t < tensors; ++t) {
    wire::Tensor& tensor = *manifest.add_tensors();
    tensor.set_name("layers.0.a.name.that.is.not.short");
    for (int i = 0; i < 4; ++i) tensor.add_global_shape(i);
    for (int s = 0; s < slices; ++s) {
      wire::Slice& slice = *tensor.add_slices();
      for (int i = 0; i < 4; ++i) slice.add_offset(i);
      for (int i = 0; i < 4; ++i) slice.add_extent(i);
      slice.set_byte_offset(1'000'000);
    }
  }
  return manifest;
}

TEST(WireSize, IsAboveWhatTheMessageTakesAndNotFarAbove) {
  for (const int slices : {0, 1, 3, 100}) {
    const wire::Manifest manifest = sample(50, slices);
    wire::Manifest parsed;
    ASSERT_TRUE(parsed.ParseFromString(manifest.SerializeAsString()));
    const auto taken = static_cast<int64_t>(parsed.SpaceUsedLong() - sizeof(parsed));
    const int64_t bound = bound_of(manifest.SerializeAsString());
    EXPECT_GE(bound, taken) << slices;
    EXPECT_LE(bound, 6 * taken) << slices;
  }
}

TEST(WireSize, CountsWhatAHostileManifestIsMadeOf) {
  const int64_t repeats = 10'000;
  const std::string empty_tensor = {'\x8A', '\x01', '\0'};    // field 17, length 0
  const std::string unknown_number = {'\xF8', '\x06', '\0'};  // field 111, 0
  const std::string unknown_text = {'\xFA', '\x06', '\0'};    // field 111, length 0
  for (const std::string& unit : {empty_tensor, unknown_number, unknown_text}) {
    std::string bytes;
    for (int64_t i = 0; i < repeats; ++i) bytes += unit;
    wire::Manifest parsed;
    ASSERT_TRUE(parsed.ParseFromString(bytes));
    EXPECT_GE(bound_of(bytes), static_cast<int64_t>(parsed.SpaceUsedLong() - sizeof(parsed)));
  }
}

TEST(WireSize, RefusesWhatIsNotWellFormed) {
  EXPECT_EQ(bound_of(""), 0);
  EXPECT_EQ(bound_of("\x8A"), -1);                           // a tag cut off
  EXPECT_EQ(bound_of(std::string("\x8A\x01\x05x", 4)), -1);  // a length beyond the end
  EXPECT_EQ(bound_of(std::string("\0\0", 2)), -1);           // field 0
  EXPECT_EQ(bound_of("\x0B"), -1);                           // a group
  EXPECT_EQ(bound_of(std::string(11, '\xFF')), -1);          // a number of more than 64 bits
}

}  // namespace
}  // namespace tessera
