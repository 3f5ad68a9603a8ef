#include "runtime/data/data_loader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tests/runtime/dataset_fixture.h"

namespace tessera {
namespace {

using Tokens = std::vector<int32_t>;

class DataLoaderTest : public testing::Test {
 protected:
  /// Documents of these lengths; token i of the whole is i modulo 256, ends are 256.
  TokenDataset make(const std::vector<int64_t>& lengths) {
    std::vector<Tokens> documents;
    int32_t next = 0;
    for (const int64_t length : lengths) {
      Tokens document;
      for (int64_t i = 0; i < length; ++i, ++next) {
        document.push_back(i == length - 1 ? 256 : next % 256);
      }
      documents.push_back(document);
    }
    write_test_dataset(directory_.path(), documents);
    return TokenDataset(directory_.path(), kTrainSplit, 257);
  }

  TemporaryDirectory directory_;
};

TEST_F(DataLoaderTest, WindowsCoverTheTokensInOrder) {
  const TokenDataset dataset = make({21});
  const DataLoader loader(dataset, {.sequence_length = 4, .shuffle = false});
  ASSERT_EQ(loader.windows(), 5);
  MicroBatch batch;
  loader.fill(0, 2, batch);
  EXPECT_EQ(batch.tokens, (Tokens{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(batch.targets, (Tokens{1, 2, 3, 4, 5, 6, 7, 8}));
  loader.fill(4, 2, batch);
  EXPECT_EQ(batch.tokens, (Tokens{16, 17, 18, 19, 0, 1, 2, 3}));
  EXPECT_EQ(batch.targets, (Tokens{17, 18, 19, 256, 1, 2, 3, 4}));
}

TEST_F(DataLoaderTest, DocumentsBeginSegmentsAndEndTargets) {
  // Documents at 0, 3, 4, 8 and 13; an empty one at 4.
  const TokenDataset dataset = make({3, 1, 0, 4, 5, 4});
  const DataLoader loader(dataset, {.sequence_length = 8, .max_documents = 4, .shuffle = false});
  MicroBatch batch;
  loader.fill(0, 2, batch);
  EXPECT_EQ(batch.tokens, (Tokens{0, 1, 256, 256, 4, 5, 6, 256, 8, 9, 10, 11, 256, 13, 14, 15}));
  EXPECT_EQ(batch.targets,
            (Tokens{1, 256, -1, -1, 5, 6, 256, -1, 9, 10, 11, 256, -1, 14, 15, 256}));
  EXPECT_EQ(batch.starts, (Tokens{0, 3, 4, 8, 13, 16, 16, 16, 16}));
}

TEST_F(DataLoaderTest, LaterDocumentsRunOnInTheLastSegment) {
  const TokenDataset dataset = make({3, 1, 0, 4, 5, 4});
  const DataLoader loader(dataset, {.sequence_length = 8, .max_documents = 2, .shuffle = false});
  MicroBatch batch;
  loader.fill(0, 2, batch);
  EXPECT_EQ(batch.targets,
            (Tokens{1, 256, -1, -1, 5, 6, 256, -1, 9, 10, 11, 256, -1, 14, 15, 256}));
  EXPECT_EQ(batch.starts, (Tokens{0, 3, 8, 13, 16}));
}

TEST_F(DataLoaderTest, WithoutDocumentBoundariesEverySequenceIsOneSegment) {
  const TokenDataset dataset = make({3, 1, 0, 4, 5, 4});
  const DataLoader loader(dataset,
                          {.sequence_length = 8, .document_boundaries = false, .shuffle = false});
  MicroBatch batch;
  loader.fill(0, 2, batch);
  EXPECT_EQ(batch.targets, (Tokens{1, 256, 256, 4, 5, 6, 256, 8, 9, 10, 11, 256, 13, 14, 15, 256}));
  EXPECT_EQ(batch.starts, (Tokens{0, 8, 16}));
  EXPECT_EQ(loader.segments_per_sequence(), 1);
}

TEST_F(DataLoaderTest, AgreesWithASlowAndPlainReference) {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < 300; ++i) lengths.push_back(i * i * 31 % 23);
  for (int64_t& length : lengths) length += length == 0 ? 1 : 0;
  const TokenDataset dataset = make(lengths);
  Tokens all(static_cast<size_t>(dataset.tokens()));
  dataset.read(0, all);
  const std::set<int64_t> starts(dataset.document_starts().begin(),
                                 dataset.document_starts().end());
  for (const int64_t length : {1, 2, 7, 64}) {
    const DataLoader loader(dataset, {.sequence_length = length, .max_documents = 3, .seed = 9});
    MicroBatch batch;
    loader.fill(5, 6, batch);
    Tokens tokens;
    Tokens targets;
    Tokens begins;
    for (int64_t row = 0; row < 6; ++row) {
      int64_t documents = 0;
      for (int64_t i = 0; i < length; ++i) {
        const int64_t at = loader.window(5 + row) * length + i;
        tokens.push_back(all[static_cast<size_t>(at)]);
        targets.push_back(starts.contains(at + 1) ? -1 : all[static_cast<size_t>(at + 1)]);
        if ((i == 0 || starts.contains(at)) && documents++ < 3) {
          begins.push_back(static_cast<int32_t>(row * length + i));
        }
      }
    }
    begins.resize(6 * 3 + 1, static_cast<int32_t>(6 * length));
    EXPECT_EQ(batch.tokens, tokens);
    EXPECT_EQ(batch.targets, targets);
    EXPECT_EQ(batch.starts, begins);
  }
}

TEST_F(DataLoaderTest, AnyRanksSeeTheSameGlobalBatch) {
  const TokenDataset dataset = make({100, 7, 300, 41, 552});
  const DataLoaderOptions options{.sequence_length = 16, .seed = 3};
  const DataLoader loader(dataset, options);
  MicroBatch whole;
  loader.fill(120, 8, whole);
  for (const int64_t ranks : {2, 4, 8}) {
    Tokens tokens;
    Tokens targets;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const DataLoader own(dataset, options);
      MicroBatch part;
      own.fill(120 + rank * 8 / ranks, 8 / ranks, part);
      tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
      targets.insert(targets.end(), part.targets.begin(), part.targets.end());
    }
    EXPECT_EQ(tokens, whole.tokens);
    EXPECT_EQ(targets, whole.targets);
  }
}

TEST_F(DataLoaderTest, AnEpochShowsEveryWindowOnce) {
  const TokenDataset dataset = make({1000});
  const DataLoader loader(dataset, {.sequence_length = 10, .seed = 3});
  ASSERT_EQ(loader.windows(), 99);
  for (const int64_t epoch : {0, 1}) {
    std::set<int64_t> seen;
    for (int64_t i = 0; i < 99; ++i) seen.insert(loader.window(epoch * 99 + i));
    EXPECT_EQ(seen.size(), 99u);
  }
  EXPECT_NE(loader.window(0), loader.window(99));
}

TEST_F(DataLoaderTest, ReusesItsMemory) {
  const TokenDataset dataset = make({1000});
  const DataLoader loader(dataset, {.sequence_length = 10, .seed = 3});
  MicroBatch batch;
  loader.fill(0, 4, batch);
  const int32_t* const tokens = batch.tokens.data();
  const int32_t* const targets = batch.targets.data();
  const int32_t* const starts = batch.starts.data();
  loader.will_need(4, 4);
  loader.fill(4, 4, batch);
  loader.fill(8, 2, batch);
  EXPECT_EQ(batch.tokens.data(), tokens);
  EXPECT_EQ(batch.targets.data(), targets);
  EXPECT_EQ(batch.starts.data(), starts);
  EXPECT_EQ(batch.tokens.size(), 20u);
}

TEST_F(DataLoaderTest, TooLittleTextSaysTheNumbers) {
  const TokenDataset dataset = make({64});
  EXPECT_EQ(DataLoader(dataset, {.sequence_length = 63}).windows(), 1);
  EXPECT_EQ(thrown_by([&] { DataLoader(dataset, {.sequence_length = 64}); }),
            "65: " + (directory_ / "train").string() +
                " has 64 tokens, but one sequence of 64 needs 65: prepare more text or lower "
                "batch.sequence_length");
  EXPECT_EQ(thrown_by([&] { DataLoader(make({}), {.sequence_length = 4}); }).substr(0, 3), "65:");
}

TEST_F(DataLoaderTest, RefusesWrongNumbers) {
  const TokenDataset dataset = make({64});
  EXPECT_THROW(DataLoader(dataset, {.sequence_length = 0}), Error);
  EXPECT_THROW(DataLoader(dataset, {.sequence_length = 4, .max_documents = 0}), Error);
  const DataLoader loader(dataset, {.sequence_length = 4});
  MicroBatch batch;
  EXPECT_THROW(loader.fill(-1, 1, batch), Error);
  EXPECT_THROW(loader.fill(0, 0, batch), Error);
  EXPECT_THROW(loader.fill(0, int64_t{1} << 30, batch), Error);
}

TEST_F(DataLoaderTest, AFileThatIsCutShortIsAnErrorNotACrash) {
  const TokenDataset dataset = make({64});
  const DataLoader loader(dataset, {.sequence_length = 63, .shuffle = false});
  std::filesystem::resize_file(directory_ / "train.bin", 10);
  MicroBatch batch;
  EXPECT_EQ(thrown_by([&] { loader.fill(0, 1, batch); }),
            "65: " + (directory_ / "train.bin").string() +
                ": ends at byte 10, expected at least 128 bytes");
}

}  // namespace
}  // namespace tessera
