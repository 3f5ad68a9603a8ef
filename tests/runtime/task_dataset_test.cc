#include "runtime/data/task_dataset.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "runtime/data/data_loader.h"
#include "runtime/data/prepare.h"
#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

class TaskDatasetTest : public testing::Test {
 protected:
  TaskDatasetOptions wanted(const std::string& name = "set") const {
    return {.task = {.kind = TaskKind::kArithmetic, .length = 128},
            .samples = 5,
            .validation = 3,
            .output = directory_ / name};
  }

  TemporaryDirectory directory_;
};

TEST_F(TaskDatasetTest, WindowsAreSamplesAndOnlyAnswersAreTargets) {
  const TaskDatasetOptions options = wanted();
  const TaskDatasetResult made = make_task_dataset(options);
  EXPECT_FALSE(made.already_there);
  for (const char* split : {kTrainSplit, kValidationSplit}) {
    const TokenDataset data(options.output, split, 128);
    ASSERT_TRUE(data.has_answers());
    for (const bool boundaries : {false, true}) {
      const DataLoader loader(
          data, {.sequence_length = 128, .document_boundaries = boundaries, .shuffle = false});
      ASSERT_EQ(loader.windows(), split == std::string(kTrainSplit) ? 5 : 3);
      MicroBatch batch;
      loader.fill(1, 2, batch);
      for (int64_t row = 0; row < 2; ++row) {
        const TaskSample sample = make_sample(options.task, split, 1 + row);
        std::vector<int32_t> targets(128, kNoTarget);
        for (const Answer& a : sample.answers) {
          targets[static_cast<size_t>(a.position - 1)] =
              sample.tokens[static_cast<size_t>(a.position)];
        }
        const auto first = static_cast<ptrdiff_t>(row * 128);
        EXPECT_TRUE(std::equal(targets.begin(), targets.end(), batch.targets.begin() + first));
        EXPECT_TRUE(
            std::equal(sample.tokens.begin(), sample.tokens.end(), batch.tokens.begin() + first));
      }
    }
  }
}

TEST_F(TaskDatasetTest, LongerWindowsHoldSeveralSamplesAndOthersAreRefused) {
  make_task_dataset(wanted());
  const TokenDataset data(directory_ / "set", kTrainSplit, 128);
  const DataLoader loader(data, {.sequence_length = 256, .shuffle = false});
  MicroBatch batch;
  loader.fill(0, 1, batch);
  EXPECT_EQ(std::ranges::count_if(batch.targets, [](int32_t t) { return t >= 0; }), 8);
  EXPECT_EQ(batch.starts[1], 128);
  EXPECT_EQ(thrown_by([&] { DataLoader(data, {.sequence_length = 64}); }),
            "2: batch.sequence_length is 64, but the samples of " + data.name() +
                " have 128 tokens: set it to that or to a multiple, or answers would lose what "
                "they ask about");
}

TEST_F(TaskDatasetTest, TheDescriptionSaysWhatItIs) {
  make_task_dataset(wanted());
  const DatasetDescription content = read_description(directory_ / "set");
  EXPECT_EQ(content.tokenizer, kNoTokenizer);
  EXPECT_EQ(content.vocabulary, 128);
  EXPECT_EQ(content.train, (SplitSize{6, 5 * 128 + 1}));
  EXPECT_EQ(
      content.task,
      (TaskFacts{
          .kind = "arithmetic", .length = 128, .train_entries = 40, .validation_entries = 24}));
  const std::string text = file_content(directory_ / "set/dataset.json");
  EXPECT_NE(text.find("\"version\": 2"), std::string::npos) << text;
  EXPECT_EQ(load_tokenizer_model(directory_ / "set"), "");
  EXPECT_EQ(thrown_by([&] { load_tokenizer(directory_ / "set"); }),
            "65: " + (directory_ / "set").string() +
                " has no tokenizer: its tokens stand for no text; use a data set of tessera data "
                "prepare");
}

TEST_F(TaskDatasetTest, AnswersOfAnotherSizeAreRefused) {
  make_task_dataset(wanted());
  TaskDatasetOptions other = wanted("other");
  other.task.pairs = 6;
  make_task_dataset(other);
  std::filesystem::copy_file(directory_ / "other/train.answers", directory_ / "set/train.answers",
                             std::filesystem::copy_options::overwrite_existing);
  const std::string name = (directory_ / "set/train.answers").string();
  EXPECT_EQ(thrown_by([&] { TokenDataset(directory_ / "set", kTrainSplit, 128); }),
            "65: " + name +
                ": byte 16: the file holds 30 entries, but dataset.json says 40; make "
                "the data set again");
}

TEST_F(TaskDatasetTest, TheSameAgainOnlyLooksAndAnotherNeedsOverwrite) {
  make_task_dataset(wanted());
  const std::string bytes = file_content(directory_ / "set/train.bin");
  EXPECT_TRUE(make_task_dataset(wanted()).already_there);
  TaskDatasetOptions other = wanted();
  other.task.seed = 2;
  EXPECT_EQ(thrown_by([&] { make_task_dataset(other); }).substr(0, 2), "2:");
  EXPECT_EQ(file_content(directory_ / "set/train.bin"), bytes);
  other.overwrite = true;
  EXPECT_FALSE(make_task_dataset(other).already_there);
  EXPECT_NE(file_content(directory_ / "set/train.bin"), bytes);
}

TEST_F(TaskDatasetTest, TextThatReplacesATaskHasNoAnswers) {
  make_task_dataset(wanted());
  directory_.write("text.txt", "some text to train on");
  prepare_dataset(
      {.inputs = {directory_ / "text.txt"}, .output = directory_ / "set", .overwrite = true});
  EXPECT_FALSE(TokenDataset(directory_ / "set", kTrainSplit, 257).has_answers());
  EXPECT_FALSE(std::filesystem::exists(directory_ / "set/train.answers"));
}

TEST_F(TaskDatasetTest, NumbersOfSamplesAreChecked) {
  TaskDatasetOptions options = wanted();
  options.samples = 0;
  EXPECT_EQ(thrown_by([&] { make_task_dataset(options); }),
            "2: --samples is 0, expected at least 1");
  options = wanted();
  options.validation = -1;
  EXPECT_EQ(thrown_by([&] { make_task_dataset(options); }),
            "2: --validation is -1, expected at least 1");
}

}  // namespace
}  // namespace tessera
