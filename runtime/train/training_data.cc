#include "runtime/train/training_data.h"

#include "runtime/config/train.pb.h"
#include "runtime/curriculum/window_scores.h"
#include "runtime/data/dataset.h"

namespace tessera {

namespace {

DataLoaderOptions loader_options(const TrainConfig& config, bool shuffle) {
  return {.sequence_length = config.batch().sequence_length(),
          .document_boundaries = config.data().document_boundaries(),
          .max_documents = config.data().max_documents(),
          .shuffle = shuffle,
          .seed = config.seed()};
}

// The same number must mean the same token, whatever source it is from.
void expect_same_tokenizer(const std::string& source, const std::string& directory,
                           const std::string& first) {
  const auto description = read_description(directory);
  const auto expected = read_description(first);
  const bool same = description.tokenizer == expected.tokenizer &&
                    description.vocabulary == expected.vocabulary &&
                    description.end_of_document == expected.end_of_document &&
                    load_tokenizer(directory).model() == load_tokenizer(first).model();
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
      loader(tokens, loader_options(config, std::string(split) == kTrainSplit)) {}

TrainingData::TrainingData(const TrainConfig& config) : mixture_(make_mixture(config, splits_)) {}

}  // namespace tessera
