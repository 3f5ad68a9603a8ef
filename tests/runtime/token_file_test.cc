#include "runtime/data/token_file.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

/// Appends numbers as little-endian bytes: how the tests write files without the code under test.
class Bytes {
 public:
  Bytes& text(std::string_view value) {
    bytes_ += value;
    return *this;
  }
  Bytes& number(int width, std::initializer_list<int64_t> values) {
    for (const int64_t value : values) {
      for (int i = 0; i < width; ++i) bytes_ += static_cast<char>(value >> (8 * i));
    }
    return *this;
  }
  const std::string& str() const { return bytes_; }

 private:
  std::string bytes_;
};

/// The index of documents {5 tokens}, {}, {3 tokens, in two sequences} of uint16.
std::string small_index() {
  return Bytes()
      .text({"MMIDIDX\0\0", 9})
      .number(8, {1})
      .number(1, {8})
      .number(8, {3, 4})
      .number(4, {5, 1, 2})
      .number(8, {0, 10, 12})
      .number(8, {0, 1, 1, 3})
      .str();
}

std::string small_tokens() {
  return Bytes().number(2, {1, 2, 3, 4, 65000, 6, 7, 8}).str();
}

std::string parse_error(const std::string& bytes) {
  return thrown_by([&] { parse_token_index(std::as_bytes(std::span(bytes)), "x.idx"); });
}

TEST(TokenFile, ReadsAHandMadeMegatronFile) {
  const TemporaryDirectory directory;
  directory.write("a.idx", small_index());
  directory.write("a.bin", small_tokens());
  const TokenFile file(directory / "a");
  EXPECT_EQ(file.tokens(), 8);
  EXPECT_EQ(file.documents(), 3);
  EXPECT_EQ(std::vector<int64_t>(file.document_starts().begin(), file.document_starts().end()),
            (std::vector<int64_t>{0, 5, 5, 8}));
  std::vector<int32_t> tokens(8);
  file.read(0, 65001, tokens);
  EXPECT_EQ(tokens, (std::vector<int32_t>{1, 2, 3, 4, 65000, 6, 7, 8}));
  tokens.resize(3);
  file.read(5, 65001, tokens);
  EXPECT_EQ(tokens, (std::vector<int32_t>{6, 7, 8}));
  file.read(8, 1, std::span(tokens).first(0));
  file.will_need(0, 8);
}

TEST(TokenFile, WritesMegatronsBytes) {
  const TemporaryDirectory directory;
  TokenFileWriter narrow(directory / "narrow", 65499);
  narrow.add_document(std::vector<int32_t>{1, 2, 65498});
  narrow.add_document({});
  narrow.add_document(std::vector<int32_t>{4});
  narrow.seal();
  EXPECT_FALSE(fs::exists(directory / "narrow.idx"));
  narrow.publish();
  EXPECT_EQ(narrow.tokens(), 4);
  EXPECT_EQ(narrow.documents(), 3);
  EXPECT_EQ(file_content(directory / "narrow.bin"), Bytes().number(2, {1, 2, 65498, 4}).str());
  EXPECT_EQ(file_content(directory / "narrow.idx"), Bytes()
                                                        .text({"MMIDIDX\0\0", 9})
                                                        .number(8, {1})
                                                        .number(1, {8})
                                                        .number(8, {2, 4})
                                                        .number(4, {3, 1})
                                                        .number(8, {0, 6})
                                                        .number(8, {0, 1, 1, 2})
                                                        .str());
  TokenFileWriter wide(directory / "wide", 65500);
  wide.add_document(std::vector<int32_t>{1, 65499});
  wide.seal();
  wide.publish();
  EXPECT_EQ(file_content(directory / "wide.bin"), Bytes().number(4, {1, 65499}).str());
  EXPECT_EQ(file_content(directory / "wide.idx"), Bytes()
                                                      .text({"MMIDIDX\0\0", 9})
                                                      .number(8, {1})
                                                      .number(1, {4})
                                                      .number(8, {1, 2})
                                                      .number(4, {2})
                                                      .number(8, {0})
                                                      .number(8, {0, 1})
                                                      .str());
}

TEST(TokenFile, ReadsBackWhatItWrote) {
  const TemporaryDirectory directory;
  for (const int64_t vocabulary : {300, 100'000}) {
    const fs::path prefix = directory / std::to_string(vocabulary);
    TokenFileWriter writer(prefix, vocabulary);
    std::vector<int32_t> all;
    std::vector<int64_t> starts{0};
    for (int document = 0; document < 50; ++document) {
      std::vector<int32_t> tokens;
      for (int i = 0; i < document * 997 % 40'000; ++i) {
        tokens.push_back(static_cast<int32_t>((i * 7919 + document) % vocabulary));
      }
      writer.add_document(tokens);
      all.insert(all.end(), tokens.begin(), tokens.end());
      starts.push_back(static_cast<int64_t>(all.size()));
    }
    writer.seal();
    writer.publish();
    const TokenFile file(prefix);
    std::vector<int32_t> back(all.size());
    file.read(0, vocabulary, back);
    EXPECT_EQ(back, all);
    EXPECT_EQ(std::vector<int64_t>(file.document_starts().begin(), file.document_starts().end()),
              starts);
  }
}

TEST(TokenFile, RefusesTokensOutsideOfTheVocabulary) {
  const TemporaryDirectory directory;
  directory.write("a.idx", small_index());
  const fs::path bin = directory.write("a.bin", small_tokens());
  const TokenFile file(directory / "a");
  std::vector<int32_t> tokens(8);
  EXPECT_EQ(thrown_by([&] { file.read(0, 65000, tokens); }),
            "65: " + bin.string() +
                ": byte 8: token is 65000, expected 0 to 64999; the file is damaged or was made "
                "with another tokenizer");
  TokenFileWriter writer(directory / "b", 10);
  EXPECT_NE(thrown_by([&] {
              writer.add_document(std::vector<int32_t>{3, 10});
            }).find("token_file: token is 10, expected 0 to 9"),
            std::string::npos);
  EXPECT_THROW(writer.add_document(std::vector<int32_t>{-1}), Error);
  EXPECT_THROW(file.read(1, 65001, tokens), Error);
}

TEST(TokenFile, RefusesATokenFileOfAnotherSize) {
  const TemporaryDirectory directory;
  directory.write("a.idx", small_index());
  for (size_t size = 0; size <= 20; ++size) {
    const fs::path bin = directory.write("a.bin", std::string(size, '\0'));
    const std::string expected =
        concat("65: ", bin.string(), ": byte ", std::min<size_t>(size, 16), ": the file has ", size,
               " bytes, expected 16 as a.idx says; make the data set again");
    EXPECT_EQ(thrown_by([&] { TokenFile file(directory / "a"); }),
              size == 16 ? "nothing" : expected);
  }
  fs::remove(directory / "a.bin");
  EXPECT_EQ(thrown_by([&] { TokenFile file(directory / "a"); }),
            "65: " + (directory / "a.bin").string() + ": cannot open: No such file or directory");
}

TEST(TokenFile, CutShortWhileOpenIsAnError) {
  const TemporaryDirectory directory;
  directory.write("a.idx", small_index());
  const fs::path bin = directory.write("a.bin", small_tokens());
  const TokenFile file(directory / "a");
  fs::resize_file(bin, 6);
  std::vector<int32_t> tokens(8);
  EXPECT_EQ(thrown_by([&] { file.read(0, 65001, tokens); }),
            "65: " + bin.string() + ": ends at byte 6, expected at least 16 bytes");
}

TEST(TokenIndex, NamesTheFirstWrongByte) {
  // Each row: offset, width and value to put there, and the complaint.
  struct Row {
    size_t offset;
    int width;
    int64_t value;
    std::string complaint;
  };
  const std::vector<Row> rows{
      {0, 1, 'm',
       "0: the file does not begin with MMIDIDX, so it is not the index of a token file"},
      {8, 1, 1, "0: the file does not begin with MMIDIDX, so it is not the index of a token file"},
      {9, 8, 2, "9: version is 2, expected 1"},
      {17, 1, 5, "17: element type is 5, expected 4 (int32) or 8 (uint16)"},
      {18, 8, 9, "18: number of sequences is 9, but the file has room for 5"},
      {18, 8, -1, "18: number of sequences is 18446744073709551615, but the file has room for 5"},
      {26, 8, 0,
       "26: number of document indices is 0, expected 1 to 4, for which the file has "
       "room"},
      {26, 8, -1,
       "26: number of document indices is 18446744073709551615, expected 1 to 4, for "
       "which the file has room"},
      {26, 8, 3, "94: the index ends here, but 8 more bytes follow"},
      {38, 4, -1, "38: length of sequence 1 is -1, expected at least 0"},
      {46, 8, 2,
       "46: sequence 0 begins at byte 2 of the .bin, expected 0, the end of the "
       "sequence before"},
      {54, 8, 8,
       "54: sequence 1 begins at byte 8 of the .bin, expected 10, the end of the "
       "sequence before"},
      {70, 8, 1, "70: document index 0 of 4 is 1, expected 0 to 0"},
      {86, 8, 0, "86: document index 2 of 4 is 0, expected 1 to 3"},
      {86, 8, 4, "86: document index 2 of 4 is 4, expected 1 to 3"},
      {78, 8, -1, "78: document index 1 of 4 is -1, expected 0 to 3"},
      {94, 8, 2, "94: document index 3 of 4 is 2, expected 3 to 3"},
  };
  for (const Row& row : rows) {
    std::string bytes = small_index();
    std::memcpy(bytes.data() + row.offset, &row.value, static_cast<size_t>(row.width));
    EXPECT_EQ(parse_error(bytes), "65: x.idx: byte " + row.complaint);
  }
  EXPECT_EQ(parse_error(small_index()), "nothing");
}

TEST(TokenIndex, EveryTruncationIsAnError) {
  const std::string whole = small_index();
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_EQ(parse_error(whole.substr(0, size)).substr(0, 15), "65: x.idx: byte") << size;
  }
  EXPECT_EQ(parse_error(whole + "x"),
            "65: x.idx: byte 102: the index ends here, but 1 more bytes follow");
}

TEST(TokenIndex, EveryFlippedBitIsAnErrorOrAConsistentIndex) {
  const std::string whole = small_index();
  int accepted = 0;
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::string bytes = whole;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    const std::string problem = parse_error(bytes);
    if (problem == "nothing") {
      ++accepted;
      const auto starts = parse_token_index(std::as_bytes(std::span(bytes)), "").document_starts;
      EXPECT_TRUE(std::is_sorted(starts.begin(), starts.end()));
      EXPECT_EQ(starts.size(), 4u);
    } else {
      EXPECT_EQ(problem.substr(0, 15), "65: x.idx: byte") << bit;
    }
  }
  // What remains: 31 bits of the last length, which only the size of the .bin contradicts, and the
  // two middle document indices, as far as they stay in order: {0, 0, 1, 3} and {0, 1, 3, 3}.
  EXPECT_EQ(accepted, 31 + 2);
}

TEST(TokenType, FollowsMegatronsThreshold) {
  EXPECT_EQ(token_type_for(257), TokenType::kUInt16);
  EXPECT_EQ(token_type_for(65499), TokenType::kUInt16);
  EXPECT_EQ(token_type_for(65500), TokenType::kInt32);
  EXPECT_EQ(size_of(TokenType::kUInt16), 2);
  EXPECT_EQ(size_of(TokenType::kInt32), 4);
}

}  // namespace
}  // namespace tessera
