#include "runtime/train/training_data.h"

#include "runtime/config/batch_schedule.h"
#include "runtime/config/train.pb.h"
#include "runtime/curriculum/window_scores.h"
#include "runtime/data/dataset.h"
#include "runtime/train/global_batch.h"

namespace tessera {

namespace {

DataLoaderOptions loader_options(const TrainConfig& config, bool shuffle) {
  return {.sequence_length = config.batch().sequence_length(),
          .document_boundaries = config.data().document_boundaries(),
          .max_documents = config.data().max_documents(),
          .shuffle = shuffle,
          .seed = config.seed()};
}

// Sequences that become shorter on the way must not cut samples of a task.
void expect_whole_samples(const TrainConfig& config, const TokenDataset& data) {
  const auto& task = data.description().task;
  if (!task) return;
  for (const int64_t step : batch_changes(config)) {
    const int64_t length = batch_size_at(config, step).sequence_length;
    if (length % task->length == 0) continue;
    throw Error(
        ExitCode::kUsage,
        concat("curriculum.sequence_length is ", length, " from step ", step,
               " on, but the samples of ", data.name(), " have ", task->length,
               " tokens: set it to that or to a multiple, or answers would lose what they ask "
               "about"));
  }
}

// The same number must mean the same token, whatever source it is from. Those of a task mean
// nothing outside of it.
void expect_same_tokenizer(const std::string& source, const std::string& directory,
                           const std::string& first) {
  const auto description = read_description(directory);
  if (description.task) return;
  const auto expected = read_description(first);
  const bool same = description.tokenizer == expected.tokenizer &&
                    description.vocabulary == expected.vocabulary &&
                    description.end_of_document == expected.end_of_document &&
                    load_tokenizer_model(directory) == load_tokenizer_model(first);
  if (same) return;
  throw Error(ExitCode::kBadData,
              concat("source ", source, ": ", directory, " was prepared with another tokenizer (",
                     description.tokenizer, ", vocabulary ", description.vocabulary, ") than ",
                     first, " (", expected.tokenizer, ", vocabulary ", expected.vocabulary,
                     "); prepare it again with --tokenizer of that"));
}

DataMixture::Source source_of(const std::string& name, const DataSplit& split,
                              const std::string& scores) {
  DataMixture::Source source{.name = name, .loader = &split.loader};
  if (scores.empty()) return source;
  source.easiest_first = easiest_first(read_scores(scores), scores, split.tokens, split.loader);
  return source;
}

DataMixture make_mixture(const TrainConfig& config,
                         std::vector<std::unique_ptr<DataSplit>>& splits) {
  const CurriculumConfig& curriculum = config.curriculum();
  const std::string& first = config.data().path();
  std::vector<DataMixture::Source> sources;
  const auto add = [&](const std::string& name, const std::string& path,
                       const std::string& scores) {
    splits.push_back(std::make_unique<DataSplit>(config, path, kTrainSplit));
    sources.push_back(source_of(name, *splits.back(), scores));
  };
  add("data", first, curriculum.scores());
  for (const SourceConfig& source : curriculum.sources()) {
    expect_same_tokenizer(source.name(), source.path(), first);
    add(source.name(), source.path(), source.scores());
  }
  return {std::move(sources), config.batch().sequences()};
}

}  // namespace

DataSplit::DataSplit(const TrainConfig& config, const std::filesystem::path& directory,
                     const char* split)
    : tokens(directory, split, config.model().vocabulary()),
      loader(tokens, loader_options(config, std::string(split) == kTrainSplit)) {
  expect_whole_samples(config, tokens);
}

DataMixture::Taken take_batch(const DataMixture& data, const DataPosition& position,
                              const TrainConfig& config, const StepPlan& plan) {
  const BatchSize size = size_of(config, plan);
  return data.take(position, {.sequences = size.sequences,
                              .sequence_length = size.sequence_length,
                              .weights = plan.weights,
                              .pool = plan.pool});
}

std::function<void(int64_t first, int64_t rows, MicroBatch& out)> rows_of(
    std::vector<DataWindow> windows, int64_t length) {
  return [all = std::move(windows), length](int64_t first, int64_t rows, MicroBatch& out) {
    const auto part = std::span(all).subspan(static_cast<size_t>(first), static_cast<size_t>(rows));
    fill_windows(part, length, out);
  };
}

TrainingData::TrainingData(const TrainConfig& config) : mixture_(make_mixture(config, splits_)) {}

}  // namespace tessera
