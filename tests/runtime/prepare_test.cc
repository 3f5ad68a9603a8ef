#include "runtime/data/prepare.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

class PrepareTest : public testing::Test {
 protected:
  PrepareOptions options() const { return {.inputs = {in_.path()}, .output = out_ / "set"}; }

  /// All documents of a split as text.
  std::vector<std::string> documents(const std::string& split) const {
    const TokenDataset dataset(out_ / "set", split, 1'000'000);
    const Tokenizer tokenizer = load_tokenizer(out_ / "set");
    const auto starts = dataset.document_starts();
    std::vector<std::string> texts;
    for (size_t i = 0; i + 1 < starts.size(); ++i) {
      std::vector<int32_t> tokens(static_cast<size_t>(starts[i + 1] - starts[i]));
      dataset.read(starts[i], tokens);
      EXPECT_EQ(tokens.back(), tokenizer.end_of_document());
      tokens.pop_back();
      EXPECT_EQ(std::count(tokens.begin(), tokens.end(), tokenizer.end_of_document()), 0);
      texts.push_back(tokenizer.decode(tokens));
    }
    return texts;
  }

  void write_files(int count) const {
    for (int i = 0; i < count; ++i) {
      in_.write(concat("f", 1000 + i), concat("file ", i, " ", std::string(i * 13 % 400, 'x')));
    }
  }

  /// Name and content of everything in the output.
  std::map<std::string, std::string> output() const {
    std::map<std::string, std::string> found;
    for (const auto& entry : fs::directory_iterator(out_ / "set")) {
      found[entry.path().filename()] = file_content(entry.path());
    }
    return found;
  }

  TemporaryDirectory in_;
  TemporaryDirectory out_;
};

TEST_F(PrepareTest, EveryDocumentGoesToOneSplitInOrder) {
  write_files(400);
  PrepareOptions wanted = options();
  wanted.validation = 0.1;
  const PrepareResult result = prepare_dataset(wanted);
  EXPECT_FALSE(result.already_there);
  const std::vector<std::string> train = documents(kTrainSplit);
  const std::vector<std::string> validation = documents(kValidationSplit);
  size_t train_at = 0;
  size_t validation_at = 0;
  int64_t bytes = 0;
  for (int i = 0; i < 400; ++i) {
    const std::string text = concat("file ", i, " ", std::string(i * 13 % 400, 'x'));
    bytes += static_cast<int64_t>(text.size());
    const bool held_out = is_validation(wanted.seed, i, 0.1);
    EXPECT_EQ(held_out ? validation.at(validation_at++) : train.at(train_at++), text);
  }
  EXPECT_EQ(train_at, train.size());
  EXPECT_EQ(validation_at, validation.size());
  // Four standard deviations of a binomial around 40.
  EXPECT_NEAR(static_cast<double>(validation.size()), 40, 24);
  const DatasetDescription& description = result.description;
  EXPECT_EQ(description.source_files, 400);
  EXPECT_EQ(description.source_documents, 400);
  EXPECT_EQ(description.source_bytes, bytes);
  EXPECT_EQ(description.train.tokens + description.validation.tokens, bytes + 400);
  EXPECT_EQ(description, read_description(wanted.output));
  std::vector<std::string> names;
  for (const auto& [name, content] : output()) names.push_back(name);
  EXPECT_EQ(names, (std::vector<std::string>{"dataset.json", "train.bin", "train.idx",
                                             "validation.bin", "validation.idx"}));
}

TEST_F(PrepareTest, WritesTheBytesOfTheExampleInTheManual) {
  in_.write("1", "ab");
  in_.write("2", "cde");
  in_.write("3", "f");
  prepare_dataset(options());
  const auto hex = [](const std::string& bytes) {
    std::string text;
    for (const char byte : bytes) {
      text += "0123456789abcdef"[static_cast<uint8_t>(byte) / 16];
      text += "0123456789abcdef"[static_cast<uint8_t>(byte) % 16];
    }
    return text;
  };
  const std::string manual = file_content(SOURCE_ROOT "/docs/data.md");
  for (const char* name : {"train.bin", "train.idx", "validation.bin"}) {
    // The example's lines: two spaces, bytes, and a comment behind column 32.
    size_t at = manual.find(concat("\n", name, "\n  "));
    ASSERT_NE(at, std::string::npos) << name;
    std::string expected;
    for (at = manual.find('\n', at + 1) + 1; manual.compare(at, 2, "  ") == 0;
         at = manual.find('\n', at) + 1) {
      for (const char c : manual.substr(at, 33)) expected += c == ' ' ? "" : std::string(1, c);
    }
    EXPECT_EQ(hex(output().at(name)), expected) << name;
  }
}

TEST_F(PrepareTest, NoSplitIsEmpty) {
  for (const double share : {1e-9, 1 - 1e-9}) {
    for (int count = 2; count <= 4; ++count) {
      fs::remove(in_ / "f1002");
      fs::remove(in_ / "f1003");
      write_files(count);
      PrepareOptions wanted = options();
      wanted.validation = share;
      wanted.overwrite = true;
      const PrepareResult result = prepare_dataset(wanted);
      const bool few_validation = share < 0.5;
      EXPECT_EQ(result.description.validation.documents, few_validation ? 1 : count - 1);
      EXPECT_EQ(result.description.train.documents, few_validation ? count - 1 : 1);
      EXPECT_EQ(documents(few_validation ? kValidationSplit : kTrainSplit).at(0),
                concat("file ", count - 1, " ", std::string((count - 1) * 13, 'x')));
    }
  }
}

TEST_F(PrepareTest, OfASingleDocumentTheTailIsValidation) {
  in_.write("a", "0123456789");
  PrepareOptions wanted = options();
  wanted.validation = 0.3;
  prepare_dataset(wanted);
  EXPECT_EQ(documents(kTrainSplit), (std::vector<std::string>{"01234567"}));
  EXPECT_EQ(documents(kValidationSplit), (std::vector<std::string>{"89"}));
}

TEST_F(PrepareTest, ASecondRunOnlyLooks) {
  write_files(20);
  prepare_dataset(options());
  const auto before = output();
  const auto time = fs::last_write_time(out_ / "set/train.bin");
  const PrepareResult again = prepare_dataset(options());
  EXPECT_TRUE(again.already_there);
  EXPECT_EQ(again.description, read_description(out_ / "set"));
  EXPECT_EQ(output(), before);
  EXPECT_EQ(fs::last_write_time(out_ / "set/train.bin"), time);
}

TEST_F(PrepareTest, AnotherDataSetIsKeptUnlessOverwriteIsGiven) {
  write_files(20);
  prepare_dataset(options());
  const auto before = output();
  const std::string refusal =
      "2: " + (out_ / "set").string() +
      " holds a data set made from other inputs or with other options: choose another --output, "
      "or give --overwrite to replace it";
  std::vector<PrepareOptions> changed(5, options());
  changed[0].seed = 2;
  changed[1].validation = 0.03;
  changed[2].tokenizer = "train:300";
  changed[3].inputs = {in_ / "f1000"};
  changed[4].text.json_field = "body";
  for (const PrepareOptions& wanted : changed) {
    EXPECT_EQ(thrown_by([&] { prepare_dataset(wanted); }), refusal);
  }
  in_.write("f1000", "changed");
  EXPECT_EQ(thrown_by([&] { prepare_dataset(options()); }), refusal);
  EXPECT_EQ(output(), before);
  PrepareOptions wanted = options();
  wanted.overwrite = true;
  EXPECT_FALSE(prepare_dataset(wanted).already_there);
  EXPECT_NE(output(), before);
}

TEST_F(PrepareTest, FailureLeavesTheOldDataSetAsItWas) {
  write_files(20);
  prepare_dataset(options());
  const auto before = output();
  in_.write("z.jsonl", "{\"text\": 1}\n");
  PrepareOptions wanted = options();
  wanted.overwrite = true;
  EXPECT_EQ(thrown_by([&] { prepare_dataset(wanted); }).substr(0, 3), "65:");
  EXPECT_EQ(output(), before);
  wanted.text.skip_bad_lines = true;
  EXPECT_EQ(prepare_dataset(wanted).description.skipped_lines, 1);
}

TEST_F(PrepareTest, ARunThatDiesWhileReplacingLeavesNoDataSetAndCanBeRepeated) {
  write_files(20);
  prepare_dataset(options());
  // A directory of this name makes the renaming fail when train.bin is new already.
  fs::remove(out_ / "set/train.idx");
  fs::create_directory(out_ / "set/train.idx");
  PrepareOptions wanted = options();
  wanted.seed = 2;
  wanted.overwrite = true;
  EXPECT_EQ(thrown_by([&] { prepare_dataset(wanted); }),
            "2: " + (out_ / "set/train.idx").string() + ": cannot create: Is a directory");
  EXPECT_FALSE(has_dataset(out_ / "set"));
  fs::remove(out_ / "set/train.idx");
  wanted.overwrite = false;
  EXPECT_FALSE(prepare_dataset(wanted).already_there);
  EXPECT_EQ(documents(kTrainSplit).size() + documents(kValidationSplit).size(), 20u);
  EXPECT_EQ(output().size(), 5u);
}

TEST_F(PrepareTest, FilesThatAreNotOursAreKept) {
  write_files(3);
  out_.write("set/train.bin", "somebody's");
  // The second refusal shows that the first left no mark behind.
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(thrown_by([&] { prepare_dataset(options()); }),
              "2: --output " + (out_ / "set").string() +
                  " has a file train.bin that is not part of a finished data set: choose another "
                  "--output, or give --overwrite to replace it");
  }
  EXPECT_EQ(output(), (std::map<std::string, std::string>{{"train.bin", "somebody's"}}));
}

TEST_F(PrepareTest, LeftoversOfADeadRunAreReplaced) {
  write_files(3);
  out_.write("set/train.bin", "half");
  out_.write("set/validation.idx.unfinished", "half");
  out_.write("set/preparation.unfinished", "");
  prepare_dataset(options());
  EXPECT_EQ(documents(kTrainSplit).size() + documents(kValidationSplit).size(), 3u);
  EXPECT_EQ(output().size(), 5u);
}

TEST_F(PrepareTest, OnlyOneProcessPreparesADirectory) {
  write_files(3);
  const fs::path lock = out_.write("set/preparation.unfinished", "");
  const int descriptor = ::open(lock.c_str(), O_RDWR);
  ASSERT_EQ(::flock(descriptor, LOCK_EX | LOCK_NB), 0);
  EXPECT_EQ(thrown_by([&] { prepare_dataset(options()); }),
            "75: " + (out_ / "set").string() +
                ": another process is preparing this data set; wait until it is done, or choose "
                "another --output");
  EXPECT_TRUE(fs::exists(lock));
  ::close(descriptor);
  EXPECT_FALSE(prepare_dataset(options()).already_there);
}

TEST_F(PrepareTest, TrainsSavesAndReusesATokenizer) {
  for (int i = 0; i < 50; ++i) {
    in_.write(concat("f", i), concat("int value_", i, " = compute(", i * i, ");\n// größe\n"));
  }
  PrepareOptions wanted = options();
  wanted.tokenizer = "train:320";
  const DatasetDescription first = prepare_dataset(wanted).description;
  EXPECT_EQ(first.tokenizer, "sentencepiece");
  EXPECT_EQ(first.vocabulary, 320);
  EXPECT_EQ(documents(kTrainSplit).at(0), "int value_0 = compute(0);\n// größe\n");
  const auto trained = output();

  fs::rename(tokenizer_path(out_ / "set"), out_ / "my.model");
  fs::remove_all(out_ / "set");
  wanted.tokenizer = out_ / "my.model";
  prepare_dataset(wanted);
  for (const char* name : {"train.bin", "train.idx", "validation.bin", "tokenizer.model"}) {
    EXPECT_EQ(output().at(name), trained.at(name)) << name;
  }
  wanted.tokenizer = "byte";
  wanted.overwrite = true;
  prepare_dataset(wanted);
  EXPECT_FALSE(fs::exists(tokenizer_path(out_ / "set")));
}

TEST_F(PrepareTest, WrongOptionsAreToldBeforeAnythingIsWritten) {
  write_files(3);
  const auto problem_with = [&](auto change) {
    PrepareOptions wanted = options();
    change(wanted);
    return thrown_by([&] { prepare_dataset(wanted); });
  };
  EXPECT_EQ(problem_with([](PrepareOptions& o) { o.validation = 0; }),
            "2: --validation is 0, expected a fraction above 0 and below 1");
  EXPECT_EQ(problem_with([](PrepareOptions& o) { o.validation = std::nan(""); }),
            "2: --validation is nan, expected a fraction above 0 and below 1");
  EXPECT_EQ(problem_with([](PrepareOptions& o) { o.inputs.clear(); }),
            "2: give at least one --input and one --output");
  for (const std::string tokenizer : {"train:", "train:12x", "train:-5", "train:99999999999"}) {
    EXPECT_EQ(
        problem_with([&](PrepareOptions& o) { o.tokenizer = tokenizer; }),
        "2: --tokenizer " + tokenizer + ": expected train:VOCABULARY, for example train:8192");
  }
  EXPECT_EQ(problem_with([](PrepareOptions& o) { o.tokenizer = "none.model"; }),
            "2: none.model: cannot open: No such file or directory");
  const fs::path empty = out_.write("empty.model", "");
  EXPECT_EQ(problem_with([&](PrepareOptions& o) { o.tokenizer = empty; }),
            "65: --tokenizer " + empty.string() + " is empty");
  const fs::path text = out_.write("text.model", "hello");
  EXPECT_EQ(problem_with([&](PrepareOptions& o) { o.tokenizer = text; }).substr(0, 4), "65: ");
  EXPECT_FALSE(fs::exists(out_ / "set"));
  EXPECT_EQ(problem_with([&](PrepareOptions& o) { o.output = text / "x"; }),
            "2: --output " + (text / "x").string() + " cannot be made: Not a directory");
}

TEST_F(PrepareTest, NoTextIsAnError) {
  in_.write("binary", std::string_view("\0", 1));
  in_.write("empty", "");
  EXPECT_EQ(thrown_by([&] { prepare_dataset(options()); }),
            "2: no text found in --input: 1 files read, 1 skipped as binary or unreadable, 0 bad "
            "lines");
  EXPECT_TRUE(fs::is_empty(out_ / "set"));
}

TEST(Prepare, SplitIsAFairDrawThatNeverChanges) {
  int64_t held_out = 0;
  for (int64_t i = 0; i < 100'000; ++i) held_out += is_validation(1, i, 0.02) ? 1 : 0;
  // Four standard deviations around 2,000.
  EXPECT_NEAR(static_cast<double>(held_out), 2000, 180);
}

}  // namespace
}  // namespace tessera
