#include "runtime/data/dataset.h"

#include <gtest/gtest.h>

#include "tests/runtime/dataset_fixture.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

const std::vector<std::vector<int32_t>> kDocuments{{104, 105, 256}, {121, 111, 33, 256}};

TEST(Dataset, OpensBothSplits) {
  const TemporaryDirectory directory;
  write_test_dataset(directory.path(), kDocuments);
  const TokenDataset dataset(directory.path(), kTrainSplit, 300);
  EXPECT_EQ(dataset.tokens(), 7);
  EXPECT_EQ(dataset.documents(), 2);
  EXPECT_EQ(dataset.name(), (directory / "train").string());
  std::vector<int32_t> tokens(4);
  dataset.read(2, tokens);
  EXPECT_EQ(tokens, (std::vector<int32_t>{256, 121, 111, 33}));
  EXPECT_EQ(TokenDataset(directory.path(), kValidationSplit, 257).tokens(), 7);
  EXPECT_THROW(TokenDataset(directory.path(), "test", 257), Error);
}

TEST(Dataset, DescriptionSurvivesTheFile) {
  const TemporaryDirectory directory;
  const DatasetDescription description{.tokenizer = "sentencepiece",
                                       .vocabulary = 8000,
                                       .end_of_document = 1,
                                       .train = {9, 1'000'000'000'000},
                                       .validation = {1, 50},
                                       .source_files = 3,
                                       .source_documents = 10,
                                       .source_bytes = 12345,
                                       .skipped_files = 6,
                                       .skipped_lines = 7,
                                       .fingerprint = "abc"};
  write_description(directory.path(), description);
  EXPECT_TRUE(has_dataset(directory.path()));
  EXPECT_EQ(read_description(directory.path()), description);
  remove_description(directory.path());
  EXPECT_FALSE(has_dataset(directory.path()));
}

TEST(Dataset, AHandWrittenDescriptionNeedsOnlyTheNecessary) {
  const TemporaryDirectory directory;
  directory.write("dataset.json", R"({"format": "tessera data set", "version": 1,
    "tokenizer": {"kind": "byte", "vocabulary": 257, "end_of_document": 256},
    "splits": {"train": {"documents": 2, "tokens": 7},
               "validation": {"documents": 0, "tokens": 0}}})");
  EXPECT_EQ(read_description(directory.path()).train, (SplitSize{2, 7}));
}

TEST(Dataset, AMissingOneSaysHowToMakeIt) {
  const TemporaryDirectory directory;
  const std::string name = (directory / "none").string();
  EXPECT_EQ(thrown_by([&] { TokenDataset(name, kTrainSplit, 300); }),
            "65: " + name +
                " holds no finished data set (there is no dataset.json): make one with tessera "
                "data prepare --input PATH --output " +
                name);
}

TEST(Dataset, ModelsVocabularyMustHoldItsTokens) {
  const TemporaryDirectory directory;
  write_test_dataset(directory.path(), kDocuments);
  EXPECT_EQ(thrown_by([&] { TokenDataset(directory.path(), kTrainSplit, 256); }),
            "65: " + (directory / "train").string() +
                ": the data set has 257 tokens, but the model's vocabulary is 256: make the "
                "model's vocabulary at least as large");
}

TEST(Dataset, DescriptionAndIndexMustAgree) {
  const TemporaryDirectory directory;
  write_test_dataset(directory.path(), kDocuments);
  DatasetDescription description = read_description(directory.path());
  description.train.tokens = 8;
  write_description(directory.path(), description);
  EXPECT_EQ(thrown_by([&] { TokenDataset(directory.path(), kTrainSplit, 300); }),
            "65: " + (directory / "train").string() +
                ".idx: byte 18: the index holds 2 documents with 7 tokens, but dataset.json says 2 "
                "and 8; prepare the data set again");
}

TEST(Dataset, DamagedDescriptionsAreNamedNeverCrash) {
  const TemporaryDirectory directory;
  write_test_dataset(directory.path(), kDocuments);
  const std::string good = file_content(directory / "dataset.json");
  const auto problem_with = [&](const std::string& text) {
    directory.write("dataset.json", text);
    return thrown_by([&] { read_description(directory.path()); });
  };
  for (size_t size = 0; size + 2 < good.size(); ++size) {
    EXPECT_EQ(problem_with(good.substr(0, size)).substr(0, 3), "65:") << size;
  }
  const std::string prefix = "65: " + (directory / "dataset.json").string() + ": ";
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return problem_with(text);
  };
  EXPECT_EQ(with("\"version\": 1", "\"version\": 3"),
            prefix +
                "/version is 3, expected 1 or 2; prepare the data set again with this version of "
                "tessera");
  EXPECT_EQ(with("tessera data set", "tar"),
            prefix + "/format is \"tar\", expected \"tessera data set\"");
  EXPECT_EQ(with("\"vocabulary\": 257", "\"vocabulary\": -3"),
            prefix + "/tokenizer/vocabulary is -3, expected a whole number from 1 to 2147483647");
  EXPECT_EQ(
      with("\"vocabulary\": 257", "\"vocabulary\": 1e99"),
      prefix + "/tokenizer/vocabulary is 1e+99, expected a whole number from 1 to 2147483647");
  EXPECT_EQ(with("\"vocabulary\": 257", "\"vocabulary\": 18446744073709551615"),
            prefix +
                "/tokenizer/vocabulary is 18446744073709551615, expected a whole number from "
                "1 to 2147483647");
  EXPECT_EQ(with("\"end_of_document\": 256", "\"end_of_document\": 257"),
            prefix + "/tokenizer/end_of_document is 257, expected a whole number from 0 to 256");
  EXPECT_EQ(
      with("\"byte\"", "\"words\""),
      prefix + "/tokenizer/kind is \"words\", expected \"byte\", \"sentencepiece\" or \"none\"");
  EXPECT_EQ(with("\"version\": 1", "\"version\": 2"), prefix + "/task/kind is missing");
  EXPECT_EQ(with("\"byte\"", "[]"), prefix + "/tokenizer/kind is [], expected text");
  EXPECT_EQ(with("\"kind\"", "\"sort\""), prefix + "/tokenizer/kind is missing");
  EXPECT_EQ(problem_with("[1, 2]").substr(0, 3), "65:");
  EXPECT_EQ(problem_with(std::string(100'000, '[')).substr(0, 3), "65:");
  EXPECT_EQ(problem_with("\"\xFF\"").substr(0, 3), "65:");
}

TEST(Dataset, LoadsItsTokenizer) {
  const TemporaryDirectory directory;
  write_test_dataset(directory.path(), kDocuments);
  EXPECT_STREQ(load_tokenizer(directory.path()).kind(), "byte");
  DatasetDescription description = read_description(directory.path());
  description.vocabulary = 300;
  write_description(directory.path(), description);
  EXPECT_EQ(thrown_by([&] { load_tokenizer(directory.path()); }),
            "65: " + directory.path().string() +
                ": the byte tokenizer has 257 tokens and ends documents with 256, but "
                "dataset.json says 300 and 256; prepare the data set again");
  description.tokenizer = "sentencepiece";
  write_description(directory.path(), description);
  EXPECT_EQ(thrown_by([&] { load_tokenizer(directory.path()); }),
            "65: " + tokenizer_path(directory.path()).string() +
                ": cannot open: No such file or directory");
}

}  // namespace
}  // namespace tessera
