#include "runtime/data/text_cut.h"

#include <gtest/gtest.h>

#include <string>

#include "kernels/core/error.h"

namespace tessera {
namespace {

TEST(TextCut, PrefersLineEndsThenSpacesThenCharacters) {
  EXPECT_EQ(text_cut("one two\nthree fo"), 8u);
  EXPECT_EQ(text_cut("one two\n"), 8u);
  EXPECT_EQ(text_cut("one two"), 3u);
  EXPECT_EQ(text_cut("one two "), 7u);
  EXPECT_EQ(text_cut(" one"), 4u);
  EXPECT_EQ(text_cut("one"), 3u);
  EXPECT_EQ(text_cut("\n"), 1u);
  EXPECT_EQ(text_cut(" "), 1u);
}

TEST(TextCut, NeverCutsACharacter) {
  for (const std::string character : {"a", "\xC3\xA4", "\xE2\x82\xAC", "\xF0\x9F\x8E\x89"}) {
    EXPECT_EQ(text_cut("x" + character), 1 + character.size());
    for (size_t bytes = 1; bytes < character.size(); ++bytes) {
      EXPECT_EQ(text_cut("xy" + character.substr(0, bytes)), 2u) << bytes;
    }
  }
}

TEST(TextCut, WhatIsNoUtf8IsCutAtTheEnd) {
  EXPECT_EQ(text_cut("\x80\x80\x80\x80\x80\x80"), 6u);
  EXPECT_EQ(text_cut("\xFF\xFF"), 2u);
  EXPECT_EQ(text_cut("\x80"), 1u);
  EXPECT_EQ(text_cut("\xF0"), 1u);
  EXPECT_THROW(text_cut(""), Error);
}

}  // namespace
}  // namespace tessera
