#include "runtime/curriculum/window_scores.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <numeric>

#include "checkpoint/safetensors.h"

namespace tessera {

namespace {

constexpr int64_t kReadAtOnce = 1 << 20;  // tokens

/// One score per window: the mean of `of_token(position, token)` over its tokens.
WindowScores mean_over_windows(const TokenDataset& dataset, const std::string& by,
                               int64_t sequence_length,
                               const std::function<double(int64_t, int32_t)>& of_token) {
  const DataLoader loader(dataset, {.sequence_length = sequence_length, .shuffle = false});
  WindowScores result{
      .by = by, .sequence_length = sequence_length, .tokens = dataset.tokens(), .scores = {}};
  std::vector<int32_t> tokens(static_cast<size_t>(sequence_length));
  for (int64_t window = 0; window < loader.windows(); ++window) {
    dataset.read(window * sequence_length, tokens);
    double sum = 0;
    for (int64_t i = 0; i < sequence_length; ++i) {
      sum += of_token(window * sequence_length + i, tokens[static_cast<size_t>(i)]);
    }
    result.scores.push_back(static_cast<float>(sum / static_cast<double>(sequence_length)));
  }
  return result;
}

int64_t number(const SafetensorsFile& file, const std::string& name) {
  const auto found = file.metadata().find(name);
  int64_t value = -1;
  if (found != file.metadata().end()) {
    const std::string& text = found->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) value = -1;
  }
  if (value < 1) {
    throw Error(ExitCode::kBadData, concat(file.path(), " has no number '", name,
                                           "', so it holds no scores of tessera data score"));
  }
  return value;
}

}  // namespace

WindowScores score_by_length(const TokenDataset& dataset, int64_t sequence_length) {
  const auto starts = dataset.document_starts();
  size_t document = 0;  // positions ascend
  return mean_over_windows(dataset, "length", sequence_length, [&](int64_t position, int32_t) {
    while (document + 1 < starts.size() && starts[document + 1] <= position) ++document;
    const int64_t end = document + 1 < starts.size() ? starts[document + 1] : dataset.tokens();
    return static_cast<double>(end - starts[document]);
  });
}

WindowScores score_by_rarity(const TokenDataset& dataset, int64_t sequence_length) {
  std::vector<double> surprise(static_cast<size_t>(dataset.description().vocabulary), 0);
  std::vector<int32_t> tokens;
  for (int64_t first = 0; first < dataset.tokens(); first += kReadAtOnce) {
    tokens.resize(static_cast<size_t>(std::min(kReadAtOnce, dataset.tokens() - first)));
    dataset.read(first, tokens);
    for (const int32_t token : tokens) ++surprise[static_cast<size_t>(token)];
  }
  for (double& count : surprise) {
    if (count > 0) count = -std::log(count / static_cast<double>(dataset.tokens()));
  }
  return mean_over_windows(dataset, "rarity", sequence_length, [&](int64_t, int32_t token) {
    return surprise[static_cast<size_t>(token)];
  });
}

void write_scores(const std::filesystem::path& path, const WindowScores& scores) {
  const ConstTensorView data(scores.scores.data(), DType::kF32,
                             {static_cast<int64_t>(scores.scores.size())}, Device{});
  write_safetensors(path, {{{.name = "scores", .data = data}}},
                    {{"by", scores.by},
                     {"sequence_length", concat(scores.sequence_length)},
                     {"tokens", concat(scores.tokens)}});
}

WindowScores read_scores(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  WindowScores scores{.by = {},
                      .sequence_length = number(file, "sequence_length"),
                      .tokens = number(file, "tokens"),
                      .scores = {}};
  if (const auto by = file.metadata().find("by"); by != file.metadata().end()) {
    scores.by = by->second;
  }
  const SafetensorsEntry& entry = file.find("scores");
  const Shape expected{(scores.tokens - 1) / scores.sequence_length};
  if (entry.dtype != DType::kF32 || entry.shape != expected) {
    throw Error(ExitCode::kBadData,
                concat(path.string(), ": scores is ", name_of(entry.dtype), " ", entry.shape,
                       ", expected f32 ", expected, " for ", scores.tokens,
                       " tokens; make them "
                       "again with tessera data score"));
  }
  scores.scores.resize(static_cast<size_t>(expected[0]));
  file.read("scores", TensorView(scores.scores.data(), DType::kF32, expected, Device{}));
  for (size_t i = 0; i < scores.scores.size(); ++i) {
    if (std::isfinite(scores.scores[i])) continue;
    throw Error(ExitCode::kBadData, concat(path.string(), ": scores[", i, "] is ", scores.scores[i],
                                           ", expected a finite number"));
  }
  return scores;
}

std::vector<int64_t> easiest_first(const WindowScores& scores, const std::filesystem::path& path,
                                   const TokenDataset& dataset, const DataLoader& loader) {
  const int64_t length = loader.sequence_length();
  if (scores.tokens != dataset.tokens() || length % scores.sequence_length != 0) {
    throw Error(ExitCode::kBadData,
                concat(path.string(), " scores windows of ", scores.sequence_length, " of ",
                       scores.tokens, " tokens, but ", dataset.name(), " has ", dataset.tokens(),
                       " and batch.sequence_length is ", length,
                       ": make scores of this data with tessera data score, whose "
                       "--sequence-length divides that"));
  }
  const int64_t parts = length / scores.sequence_length;
  std::vector<double> means;
  for (int64_t window = 0; window < loader.windows(); ++window) {
    const auto first = scores.scores.begin() + window * parts;
    means.push_back(std::accumulate(first, first + parts, 0.0));
  }
  std::vector<int64_t> order(means.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return means[static_cast<size_t>(a)] < means[static_cast<size_t>(b)];
  });
  return order;
}

}  // namespace tessera
