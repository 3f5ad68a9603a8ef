#include "runtime/data/task_dataset.h"

#include <vector>

#include "runtime/data/preparation.h"

namespace tessera {

namespace {

/// The files of one split, not published yet.
class TaskSplit {
 public:
  TaskSplit(const TaskDatasetOptions& options, const char* split, int64_t samples)
      : tokens_(options.output / split, TaskTokens(options.task).vocabulary),
        answers_(answer_path(options.output / split)) {
    std::vector<Answer> answers;
    for (int64_t i = 0; i < samples; ++i) {
      const int64_t begin = tokens_.tokens();
      const TaskSample sample = make_sample(options.task, split, i);
      for (const Answer& answer : sample.answers) {
        answers.push_back({begin + answer.position, begin + answer.source});
      }
      tokens_.add_document(sample.tokens);
    }
    tokens_.add_document(std::vector<int32_t>{TaskTokens::kEnd});
    entries_ = std::ssize(answers);
    append_answers(answers_, answers);
    tokens_.seal();
  }

  void publish() {
    tokens_.publish();
    answers_.publish();
  }
  SplitSize size() const { return {tokens_.documents(), tokens_.tokens()}; }
  int64_t entries() const { return entries_; }

 private:
  TokenFileWriter tokens_;
  AtomicFile answers_;
  int64_t entries_ = 0;
};

std::string fingerprint(const TaskDatasetOptions& options) {
  const TaskOptions& task = options.task;
  Fingerprint print;
  print.add("tessera task 1 ", name_of(task.kind), ' ', task.length, ' ', task.pairs, ' ',
            task.keys, ' ', task.values, ' ', task.noise, ' ', task.modulus, ' ', task.seed, ' ',
            options.samples, ' ', options.validation);
  return print.text();
}

DatasetDescription write_dataset(const TaskDatasetOptions& options, const std::string& print,
                                 Preparation& preparation) {
  TaskSplit train(options, kTrainSplit, options.samples);
  TaskSplit validation(options, kValidationSplit, options.validation);
  preparation.begin_replacing();
  train.publish();
  validation.publish();
  remove_file(tokenizer_path(options.output));
  const DatasetDescription description{
      .tokenizer = kNoTokenizer,
      .vocabulary = TaskTokens(options.task).vocabulary,
      .end_of_document = TaskTokens::kEnd,
      .train = train.size(),
      .validation = validation.size(),
      .fingerprint = print,
      .task = TaskFacts{.kind = name_of(options.task.kind),
                        .length = options.task.length,
                        .train_entries = train.entries(),
                        .validation_entries = validation.entries()}};
  write_description(options.output, description);
  preparation.finish();
  return description;
}

}  // namespace

TaskDatasetResult make_task_dataset(const TaskDatasetOptions& options) {
  for (const auto& [name, samples] :
       {std::pair("samples", options.samples), std::pair("validation", options.validation)}) {
    if (samples >= 1) continue;
    throw Error(ExitCode::kUsage, concat("--", name, " is ", samples, ", expected at least 1"));
  }
  check(options.task);
  const std::string print = fingerprint(options);
  const auto already_there = [&] {
    return holds_dataset(options.output, print, options.overwrite);
  };
  if (already_there()) return {read_description(options.output), true};
  Preparation preparation(options.output, options.overwrite);
  // Another process may have finished between the first look and the lock.
  if (already_there()) return {read_description(options.output), true};
  return {write_dataset(options, print, preparation), false};
}

}  // namespace tessera
