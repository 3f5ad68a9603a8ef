#include "runtime/data/answer_file.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

const std::vector<Answer> kAnswers{{3, 1}, {9, 0}, {9, 4}, {10, 9}};

std::string written(const std::vector<Answer>& answers) {
  const TemporaryDirectory directory;
  AtomicFile file(answer_path(directory / "train"));
  append_answers(file, answers);
  file.publish();
  return file_content(directory / "train.answers");
}

std::vector<Answer> parsed(const std::string& bytes, int64_t tokens = 11) {
  return parse_answers(std::as_bytes(std::span(bytes)), tokens, "x.answers");
}

std::string problem(const std::string& bytes, int64_t tokens = 11) {
  return thrown_by([&] { parsed(bytes, tokens); });
}

TEST(AnswerFile, HasTheBytesOfItsSpecification) {
  const std::string bytes = written({{258, 1}});
  const std::string expected(
      "TSANSWER\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\2\1\0\0\0\0\0\0\1\0\0\0\0\0\0\0", 40);
  EXPECT_EQ(bytes, expected);
}

TEST(AnswerFile, ReadsWhatWasWritten) {
  EXPECT_EQ(parsed(written(kAnswers)), kAnswers);
  EXPECT_EQ(parsed(written({})), std::vector<Answer>{});
  const TemporaryDirectory directory;
  directory.write("train.answers", written(kAnswers));
  EXPECT_EQ(read_answers(directory / "train", 11), kAnswers);
  EXPECT_EQ(thrown_by([&] { read_answers(directory / "none", 11); }).substr(0, 3), "65:");
}

TEST(AnswerFile, DamageIsNamedWithItsByte) {
  const std::string end = "; the file is damaged: make the data set again";
  const std::string good = written(kAnswers);
  EXPECT_EQ(problem(good.substr(0, 20)),
            "65: x.answers: byte 20: the file ends, expected a header of 24 bytes" + end);
  std::string bad = good;
  bad[0] = 'X';
  EXPECT_EQ(problem(bad), "65: x.answers: byte 0: the file does not begin with TSANSWER" + end);
  bad = good;
  bad[8] = 2;
  EXPECT_EQ(problem(bad), "65: x.answers: byte 8: version is 2, expected 1" + end);
  EXPECT_EQ(problem(good.substr(0, good.size() - 1)),
            "65: x.answers: byte 16: number of answers is 4, but the file has 87 bytes, expected "
            "24 + 16 for each" +
                end);
  EXPECT_EQ(problem(good, 10),
            "65: x.answers: byte 72: position of entry 3 is 10, expected 9 to 9" + end);
}

TEST(AnswerFile, EntriesMustAscendAndSourcesComeBefore) {
  for (const std::vector<Answer>& wrong : std::vector<std::vector<Answer>>{
           {{0, 0}}, {{5, 5}}, {{5, -1}}, {{5, 1}, {4, 1}}, {{5, 1}, {5, 1}}, {{5, 2}, {5, 1}}}) {
    EXPECT_EQ(problem(written(wrong)).substr(0, 20), "65: x.answers: byte ");
  }
  EXPECT_EQ(problem(written({{5, 5}})),
            "65: x.answers: byte 32: source of entry 0 is 5, expected 0 to 4, before the answer; "
            "the file is damaged: make the data set again");
}

// Every byte flipped gives other answers or an error, never a crash.
TEST(AnswerFile, AnyByteMayBeDamaged) {
  const std::string good = written(kAnswers);
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x55);
    try {
      EXPECT_NE(parsed(bad), kAnswers);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadData);
    }
  }
}

}  // namespace
}  // namespace tessera
