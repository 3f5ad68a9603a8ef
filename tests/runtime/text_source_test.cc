#include "runtime/data/text_source.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>

#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

class TextSourceTest : public testing::Test {
 protected:
  std::vector<std::string> listed() const {
    std::vector<std::string> names;
    for (const TextFile& file : list_text_files(std::vector{directory_.path()})) {
      names.push_back(fs::relative(file.path, directory_.path()));
    }
    return names;
  }

  std::vector<std::string> read(const std::vector<fs::path>& inputs, const TextOptions& options) {
    TextSource source(list_text_files(inputs), options);
    std::vector<std::string> documents;
    for (std::string document; source.next(document);) documents.push_back(document);
    counts_ = source.counts();
    bytes_read_ = source.bytes_read();
    return documents;
  }

  TemporaryDirectory directory_;
  TextCounts counts_;
  int64_t bytes_read_ = 0;
};

TEST_F(TextSourceTest, WalksDirectoriesInTheOrderOfNames) {
  for (const char* name :
       {"b/vector", "b/a.h", "b.txt", "a", "c/d/e", ".git/config", "c/.hidden", "c/empty", "Z"}) {
    directory_.write(name, name);
  }
  EXPECT_EQ(listed(),
            (std::vector<std::string>{"Z", "a", "b/a.h", "b/vector", "b.txt", "c/d/e", "c/empty"}));
}

TEST_F(TextSourceTest, FollowsLinksOnceAndEndsInLoops) {
  directory_.write("a/x", "x");
  fs::create_directory_symlink(directory_ / "a", directory_ / "a/again");
  fs::create_directory_symlink(directory_.path(), directory_ / "a/up");
  fs::create_symlink("dangling", directory_ / "b");
  fs::create_symlink("c", directory_ / "c");
  fs::create_symlink("a/x", directory_ / "d");
  ASSERT_EQ(::mkfifo((directory_ / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(listed(), (std::vector<std::string>{"a/x"}));
  const TemporaryDirectory other;
  fs::create_symlink(directory_ / "a/x", other / "shard");
  EXPECT_EQ(read({other.path(), other / "shard"}, {}), (std::vector<std::string>{"x"}));
}

TEST_F(TextSourceTest, AnInputThatCannotBeReadIsAnError) {
  const auto list = [](const fs::path& path) {
    return thrown_by([&] { list_text_files(std::vector{path}); });
  };
  const std::string none = (directory_ / "none").string();
  EXPECT_EQ(list(none), "2: --input " + none + " cannot be read: No such file or directory");
  EXPECT_EQ(list("/dev/null"),
            "2: --input /dev/null cannot be read: it is neither a file nor a directory");
  const fs::path loop = directory_ / "loop";
  fs::create_symlink("loop", loop);
  EXPECT_EQ(list(loop),
            "2: --input " + loop.string() + " cannot be read: Too many levels of symbolic links");
}

TEST_F(TextSourceTest, EveryTextFileIsADocument) {
  directory_.write("1.txt", "one\nline\n");
  directory_.write("2", "no end of line, \xFF no UTF-8");
  directory_.write("3.txt", "");
  directory_.write("4.bin", std::string_view("bin\0ary", 7));
  directory_.write("5.json", "{\"text\": \"a whole file\"}");
  EXPECT_EQ(read({directory_.path()}, {}),
            (std::vector<std::string>{"one\nline\n", "no end of line, \xFF no UTF-8",
                                      "{\"text\": \"a whole file\"}"}));
  EXPECT_EQ(counts_.files, 4);
  EXPECT_EQ(counts_.documents, 3);
  EXPECT_EQ(counts_.skipped_files, 1);
  EXPECT_EQ(counts_.bytes, 9 + 26 + 24);
  EXPECT_EQ(bytes_read_, 9 + 26 + 7 + 24);
}

TEST_F(TextSourceTest, ANamedBinaryFileIsAnError) {
  const fs::path path = directory_.write("a.gz", std::string_view("bin\0ary", 7));
  EXPECT_EQ(thrown_by([&] { read({path}, {}); }),
            "2: --input " + path.string() + " is a binary file (it has a NUL byte), expected text");
}

TEST_F(TextSourceTest, OfABinaryFileOnlyTheBeginningIsRead) {
  const fs::path path = directory_.write("big", std::string(20'000'000, '\0'));
  directory_.write("text", "text");
  EXPECT_EQ(read({directory_.path()}, {}), (std::vector<std::string>{"text"}));
  // All of it counts as read, or a progress bar would stop short of its end.
  EXPECT_EQ(bytes_read_, 20'000'004);
}

TEST_F(TextSourceTest, AFileThatVanishedIsSkipped) {
  directory_.write("a", "a");
  directory_.write("b", "b");
  std::vector<TextFile> files = list_text_files(std::vector{directory_.path()});
  fs::remove(directory_ / "a");
  TextSource source(files, {});
  std::string document;
  EXPECT_TRUE(source.next(document));
  EXPECT_EQ(document, "b");
  EXPECT_FALSE(source.next(document));
  EXPECT_EQ(source.counts().skipped_files, 1);
  files[0].named = true;
  EXPECT_EQ(thrown_by([&] { TextSource(files, {}).next(document); }).substr(0, 2), "2:");
}

TEST_F(TextSourceTest, LongFilesComeInPartsCutAtLineEnds) {
  std::string text;
  while (static_cast<int64_t>(text.size()) < 2 * TextSource::kPartBytes + 1000) {
    text += std::string(99, static_cast<char>('a' + text.size() / 100 % 26)) + "\n";
  }
  const fs::path path = directory_.write("long", text);
  std::vector<std::string> parts = read({path}, {});
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_EQ(parts[0] + parts[1] + parts[2], text);
  for (const std::string& part : parts) {
    EXPECT_EQ(part.back(), '\n');
    EXPECT_LE(static_cast<int64_t>(part.size()), TextSource::kPartBytes + (1 << 20));
  }
  EXPECT_EQ(counts_.files, 1);
  EXPECT_EQ(bytes_read_, static_cast<int64_t>(text.size()));
}

TEST_F(TextSourceTest, WithoutLineEndsNoCharacterIsCut) {
  // Two bytes more than a part, and a character of three bytes across each possible cut.
  for (const std::string lead : {"", "x", "xx"}) {
    std::string text = lead;
    while (static_cast<int64_t>(text.size()) < TextSource::kPartBytes + 5) text += "\xE2\x82\xAC";
    const std::vector<std::string> parts = read({directory_.write("long", text)}, {});
    ASSERT_EQ(parts.size(), 2u);
    EXPECT_EQ(parts[0] + parts[1], text);
    EXPECT_EQ(parts[1].front(), '\xE2');
  }
}

TEST_F(TextSourceTest, ANulByteFarInEndsALongFile) {
  std::string text(static_cast<size_t>(TextSource::kPartBytes), 'a');
  text.back() = '\n';
  const fs::path path = directory_.write("long", text + std::string("b\0c", 3));
  EXPECT_EQ(read({path}, {}), (std::vector<std::string>{text}));
}

TEST_F(TextSourceTest, JsonLinesAreDocuments) {
  const fs::path path = directory_.write(
      "a.jsonl",
      "\xEF\xBB\xBF{\"text\": \"one\\n\\u00e4\", \"id\": 1}\r\n\n  \n"
      "{\"id\": 2, \"text\": \"two\"}\n{\"text\": \"\"}\n{\"text\":\"last, no end of line\"}");
  EXPECT_EQ(read({path}, {}), (std::vector<std::string>{"one\nä", "two", "last, no end of line"}));
  EXPECT_EQ(counts_.documents, 3);
  EXPECT_EQ(counts_.skipped_lines, 0);
  directory_.write("b.ndjson", "{\"body\": \"x\"}\n");
  EXPECT_EQ(read({directory_ / "b.ndjson"}, {.json_field = "body"}),
            (std::vector<std::string>{"x"}));
}

TEST_F(TextSourceTest, BadJsonLinesStopOrAreSkipped) {
  struct Row {
    std::string line;
    std::string complaint;  // its beginning
  };
  const std::vector<Row> rows{
      {"{\"text\": \"open", "parse error at line 1, column "},
      {"{\"text\": \"a\"} {}", "parse error at line 1, column "},
      {"[\"text\"]", "expected a JSON object, got array"},
      {"{\"txt\": \"a\"}", "the object has no field \"text\""},
      {"{\"text\": 3}", "field \"text\" is number, expected a string"},
      {"{\"text\": \"\xFF\"}", "parse error at line 1, column "},
      {std::string(100'000, '['), "parse error at line 1, column "},
      {"{\"text\": \"" + std::string(10'000, 'a'), "parse error at line 1, column "},
      {std::string("\0", 1), "parse error at line 1, column "},
  };
  const std::string good = "{\"text\": \"good\"}\n";
  for (const Row& row : rows) {
    const fs::path path = directory_.write("a.jsonl", good + "\n" + row.line + "\n" + good);
    const std::string problem = thrown_by([&] { read({path}, {}); });
    const std::string expected = "65: " + path.string() + ":3: " + row.complaint;
    EXPECT_EQ(problem.substr(0, expected.size()), expected);
    EXPECT_LT(problem.size(), 400u);
    EXPECT_TRUE(problem.ends_with("; mend it or give --on-bad-line skip")) << problem;
    EXPECT_EQ(read({path}, {.skip_bad_lines = true}), (std::vector<std::string>{"good", "good"}));
    EXPECT_EQ(counts_.skipped_lines, 1);
  }
}

TEST_F(TextSourceTest, AnEndlessJsonLineIsABadLine) {
  const std::string good = "{\"text\": \"good\"}\n";
  const std::string line(static_cast<size_t>(2 * TextSource::kPartBytes + 4'000'000), ' ');
  const fs::path path = directory_.write("a.jsonl", good + line + "\n" + good + line);
  EXPECT_EQ(thrown_by([&] { read({path}, {}); }),
            "65: " + path.string() +
                ":2: the line is longer than 16777216 bytes; mend it or give --on-bad-line skip");
  EXPECT_EQ(read({path}, {.skip_bad_lines = true}), (std::vector<std::string>{"good", "good"}));
  EXPECT_EQ(counts_.skipped_lines, 2);
}

}  // namespace
}  // namespace tessera
