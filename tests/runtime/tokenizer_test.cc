#include "runtime/data/tokenizer.h"

#include <gtest/gtest.h>

#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

std::vector<int32_t> encode(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> tokens;
  tokenizer.encode(text, tokens);
  return tokens;
}

/// A few thousand lines that look like a program.
std::string training_text() {
  std::string text;
  for (int i = 0; i < 3000; ++i) {
    text += concat("  const int value_", i % 97, " = compute(", i, ", \"größe\");\n");
    if (i % 5 == 0) text += concat("}  // namespace part", i % 13, "\n\n");
  }
  return text;
}

NextText once(const std::string& text) {
  return [text, given = false](std::string& out) mutable {
    out = text;
    return !std::exchange(given, true);
  };
}

const std::string& trained_model() {
  static const std::string model = train_sentence_piece(once(training_text()), 400);
  return model;
}

TEST(ByteTokenizer, TakesAnyBytesThereAndBack) {
  const Tokenizer tokenizer;
  EXPECT_STREQ(tokenizer.kind(), "byte");
  EXPECT_EQ(tokenizer.vocabulary(), 257);
  EXPECT_EQ(tokenizer.end_of_document(), 256);
  EXPECT_EQ(encode(tokenizer, "aZ\xFF"), (std::vector<int32_t>{97, 90, 255}));
  std::string every_byte;
  for (int i = 0; i < 256; ++i) every_byte += static_cast<char>(i);
  EXPECT_EQ(tokenizer.decode(encode(tokenizer, every_byte)), every_byte);
}

TEST(ByteTokenizer, AppendsAndDecodesWhatIsNoByte) {
  const Tokenizer tokenizer;
  std::vector<int32_t> tokens{1};
  tokenizer.encode("b", tokens);
  EXPECT_EQ(tokens, (std::vector<int32_t>{1, 98}));
  EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{98, 256, 99, 300, -5}),
            "bc\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(SentencePiece, ReadsBackValidUtf8AsItWas) {
  const Tokenizer tokenizer = Tokenizer::from_model(trained_model(), "test");
  EXPECT_STREQ(tokenizer.kind(), "sentencepiece");
  EXPECT_EQ(tokenizer.vocabulary(), 400);
  for (const std::string text :
       {"const int value_7 = compute(4);\n", " leading,  two  spaces and trailing \n\n\t\tx\r\n",
        "größe — ж 漢字 🎉 never seen", "a\n\n\n\n   b", ""}) {
    EXPECT_EQ(tokenizer.decode(encode(tokenizer, text)), text);
  }
  const std::string seen = training_text();
  EXPECT_EQ(tokenizer.decode(encode(tokenizer, seen)), seen);
  EXPECT_LT(encode(tokenizer, seen).size(), seen.size() / 2);
}

TEST(SentencePiece, NeverFailsOnStrangeText) {
  const Tokenizer tokenizer = Tokenizer::from_model(trained_model(), "test");
  EXPECT_EQ(tokenizer.decode(encode(tokenizer, "a\xFF z")), "a\xEF\xBF\xBD z");
  EXPECT_EQ(tokenizer.decode(encode(tokenizer, "\xE2\x96\x81")), " ");
  const std::string with_nul("a\0b", 3);
  EXPECT_EQ(tokenizer.decode(encode(tokenizer, with_nul)), with_nul);
  // Text that spells a control piece is text.
  const std::vector<int32_t> tokens = encode(tokenizer, "x</s>y<unk>");
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), tokenizer.end_of_document()), 0);
  EXPECT_EQ(tokenizer.decode(tokens), "x</s>y<unk>");
}

TEST(SentencePiece, LongTextsAreEncodedInPiecesThatDoNotShow) {
  const Tokenizer tokenizer = Tokenizer::from_model(trained_model(), "test");
  std::string text;
  std::vector<int32_t> by_line;
  for (int i = 0; text.size() < 200'000; ++i) {
    const std::string line = concat("  const int value_", i, " = größe;\n");
    tokenizer.encode(line, by_line);
    text += line;
  }
  EXPECT_EQ(encode(tokenizer, text), by_line);
  std::string unbroken;
  while (unbroken.size() < 200'000) unbroken += "漢字🎉é";
  EXPECT_EQ(tokenizer.decode(encode(tokenizer, unbroken)), unbroken);
}

TEST(SentencePiece, DecodesAnyNumbers) {
  const Tokenizer tokenizer = Tokenizer::from_model(trained_model(), "test");
  std::vector<int32_t> tokens = encode(tokenizer, "ab");
  tokens.push_back(tokenizer.end_of_document());
  tokens.push_back(tokenizer.vocabulary());
  tokens.push_back(-1);
  EXPECT_EQ(tokenizer.decode(tokens), "ab\xEF\xBF\xBD\xEF\xBF\xBD");
  std::vector<int32_t> all;
  for (int32_t i = 0; i < tokenizer.vocabulary(); ++i) all.push_back(i);
  EXPECT_FALSE(tokenizer.decode(all).empty());
}

TEST(SentencePiece, TrainingIsReproducible) {
  EXPECT_EQ(train_sentence_piece(once(training_text()), 400), trained_model());
}

TEST(SentencePiece, RefusesWhatCannotBeTrained) {
  EXPECT_EQ(thrown_by([] { train_sentence_piece(once("abc"), 10); }),
            "2: a vocabulary of 10 cannot be trained: give 290 to 1000000");
  EXPECT_EQ(thrown_by([] { train_sentence_piece(once("abc\n"), 5000); }),
            "2: a vocabulary of 5000 cannot be trained on this text: Vocabulary size too high "
            "(5000). Please set it to a value <= 265.");
  EXPECT_EQ(thrown_by([] { train_sentence_piece(once(""), 400); }),
            "2: a vocabulary of 400 cannot be trained on this text: there is too little text");
}

TEST(SentencePiece, RefusesWhatIsNoModel) {
  const std::string& model = trained_model();
  for (const std::string& bad : {std::string("hello"), std::string(1000, '\0')}) {
    const std::string problem = thrown_by([&] { Tokenizer::from_model(bad, "m"); });
    EXPECT_EQ(problem.substr(0, 32), "65: m is not a SentencePiece mod") << problem;
  }
  for (size_t size = 1; size < model.size(); size += 7) {
    thrown_by([&] { encode(Tokenizer::from_model(model.substr(0, size), "m"), "some text"); });
  }
}

TEST(Tokenizer, ModelSavesIt) {
  const Tokenizer bytes = Tokenizer::from_model(Tokenizer().model(), "saved");
  EXPECT_STREQ(bytes.kind(), "byte");
  const Tokenizer first = Tokenizer::from_model(trained_model(), "test");
  const Tokenizer second = Tokenizer::from_model(first.model(), "saved");
  EXPECT_EQ(encode(first, "const int x"), encode(second, "const int x"));
}

}  // namespace
}  // namespace tessera
