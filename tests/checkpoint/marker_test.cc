#include "checkpoint/marker.h"

#include <gtest/gtest.h>

#include "kernels/core/error.h"

namespace tessera {
namespace {

Marker sample() {
  Marker marker;
  marker.format_major = 1;
  marker.step = 12000;
  marker.epoch = 7;
  marker.manifest_bytes = 815;
  marker.manifest_hash = "99aa06d3014798d86001c324468d497f";
  return marker;
}

std::string refusal(const std::string& text) {
  try {
    decode_marker(text, "COMMITTED");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    return error.what();
  }
  return "";
}

TEST(Marker, ComesBack) {
  const std::string text = encode_marker(sample());
  EXPECT_EQ(text, "tessera-checkpoint 1 12000 7 815 99aa06d3014798d86001c324468d497f 4f9ced5e\n");
  const Marker marker = decode_marker(text, "COMMITTED");
  EXPECT_EQ(marker.format_major, 1U);
  EXPECT_EQ(marker.step, 12000);
  EXPECT_EQ(marker.epoch, 7);
  EXPECT_EQ(marker.manifest_bytes, 815);
  EXPECT_EQ(marker.manifest_hash, sample().manifest_hash);
}

TEST(Marker, RefusesEveryTruncationAndEverySingleBit) {
  const std::string text = encode_marker(sample());
  for (size_t length = 0; length < text.size(); ++length) {
    EXPECT_NE(refusal(text.substr(0, length)), "") << length;
  }
  for (size_t bit = 0; bit < 8 * text.size(); ++bit) {
    std::string changed = text;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_NE(refusal(changed), "") << bit;
  }
  EXPECT_NE(refusal(text + "x"), "");
  EXPECT_NE(refusal(std::string(100, '\0')), "");
}

TEST(Marker, KnowsTheMarkersOfOtherFormats) {
  Marker future = sample();
  future.format_major = 9;
  EXPECT_EQ(decode_marker(encode_marker(future), "COMMITTED").format_major, 9U);
}

TEST(Marker, RefusesNumbersThatCannotBe) {
  Marker negative = sample();
  negative.step = -1;
  EXPECT_NE(refusal(encode_marker(negative)), "");
}

TEST(Latest, ComesBackOrIsEmpty) {
  const std::string text = encode_latest("step-00001000");
  EXPECT_EQ(decode_latest(text), "step-00001000");
  for (size_t length = 0; length < text.size(); ++length) {
    EXPECT_EQ(decode_latest(text.substr(0, length)), "") << length;
  }
  EXPECT_EQ(decode_latest("step-00001000"), "");
  EXPECT_EQ(decode_latest("step-000010004a50962d\n"), "");
}

}  // namespace
}  // namespace tessera
