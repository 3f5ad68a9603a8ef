#include "runtime/data/data_loader.h"

#include <algorithm>
#include <limits>

namespace tessera {

namespace {

int64_t count_windows(const TokenDataset& dataset, int64_t sequence_length) {
  CHECK(sequence_length >= 1, "data_loader: sequence_length is ", sequence_length,
        ", expected at least 1");
  const int64_t windows = (dataset.tokens() - 1) / sequence_length;
  if (windows < 1) {
    throw Error(ExitCode::kBadData,
                concat(dataset.name(), " has ", dataset.tokens(), " tokens, but one sequence of ",
                       sequence_length, " needs ", sequence_length + 1,
                       ": prepare more text or lower batch.sequence_length"));
  }
  const auto& task = dataset.description().task;
  if (task && sequence_length % task->length != 0) {
    throw Error(ExitCode::kUsage,
                concat("batch.sequence_length is ", sequence_length, ", but the samples of ",
                       dataset.name(), " have ", task->length,
                       " tokens: set it to that or to a multiple, or answers would lose what they "
                       "ask about"));
  }
  return windows;
}

void expect_rows(int64_t sequences, int64_t length, int64_t segments) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  CHECK(sequences >= 1 && sequences <= kMost / length && sequences <= kMost / segments,
        "data_loader: ", sequences, " sequences of ", length, " tokens and ", segments,
        " segments, expected at least 1 and at most ", kMost, " in all");
}

}  // namespace

DataLoader::DataLoader(const TokenDataset& dataset, const DataLoaderOptions& options)
    : dataset_(dataset),
      options_(options),
      order_(count_windows(dataset, options.sequence_length), options.seed) {
  CHECK(options.max_documents >= 1, "data_loader: max_documents is ", options.max_documents,
        ", expected at least 1");
}

int64_t DataLoader::segments_per_sequence() const {
  return options_.document_boundaries ? options_.max_documents : 1;
}

int64_t DataLoader::window(int64_t sample) const {
  CHECK(sample >= 0, "data_loader: sample is ", sample, ", expected at least 0");
  return options_.shuffle ? order_.at(sample) : sample % windows();
}

void DataLoader::fill(int64_t first_sample, int64_t sequences, MicroBatch& out) const {
  fill_pieces(first_sample, sequences, options_.sequence_length, out);
}

void DataLoader::fill_pieces(int64_t first_sample, int64_t sequences, int64_t length,
                             MicroBatch& out) const {
  CHECK(length >= 1 && options_.sequence_length % length == 0, "data_loader: pieces of ", length,
        " tokens, expected a divisor of ", options_.sequence_length);
  expect_rows(sequences, length, segments_per_sequence());
  const int64_t pieces = options_.sequence_length / length;
  std::vector<DataWindow> windows;
  for (int64_t sample = first_sample; sample < first_sample + sequences; ++sample) {
    const int64_t first =
        window(sample / pieces) * options_.sequence_length + sample % pieces * length;
    windows.push_back({.loader = this, .first = first});
  }
  fill_windows(windows, length, out);
}

void fill_windows(std::span<const DataWindow> windows, int64_t length, MicroBatch& out) {
  const auto sequences = static_cast<int64_t>(windows.size());
  const int64_t segments = windows.empty() ? 1 : windows[0].loader->segments_per_sequence();
  expect_rows(sequences, length, segments);
  out.tokens.resize(static_cast<size_t>(sequences * length));
  out.targets.resize(out.tokens.size());
  out.starts.reserve(static_cast<size_t>(sequences * segments + 1));
  out.starts.clear();
  for (int64_t row = 0; row < sequences; ++row) {
    const DataWindow& window = windows[static_cast<size_t>(row)];
    window.loader->fill_sequence(window.first, length, row, out);
  }
  out.starts.resize(static_cast<size_t>(sequences * segments + 1),
                    static_cast<int32_t>(sequences * length));
}

void DataLoader::fill_sequence(int64_t first, int64_t length, int64_t row, MicroBatch& out) const {
  const int64_t at = row * length;
  // One read for both: targets are the tokens one further on.
  const auto targets =
      std::span(out.targets).subspan(static_cast<size_t>(at), static_cast<size_t>(length));
  dataset_.read(first + 1, targets);
  const auto tokens =
      std::span(out.tokens).subspan(static_cast<size_t>(at), static_cast<size_t>(length));
  dataset_.read(first, tokens.first(1));
  std::copy(targets.begin(), targets.end() - 1, tokens.begin() + 1);

  if (dataset_.has_answers()) keep_answers(first, targets);

  out.starts.push_back(static_cast<int32_t>(at));
  if (!options_.document_boundaries) return;
  int64_t segments = 1;
  int64_t previous = first;
  const auto starts = dataset_.document_starts();
  for (auto it = std::upper_bound(starts.begin(), starts.end(), first);
       it != starts.end() && *it <= first + length; ++it) {
    if (*it == previous) continue;  // an empty document
    previous = *it;
    const int64_t position = *it - first;
    targets[static_cast<size_t>(position - 1)] = kNoTarget;
    if (segments == options_.max_documents || position == length) continue;
    out.starts.push_back(static_cast<int32_t>(at + position));
    ++segments;
  }
}

/// `targets` are the tokens from `first` + 1 on; those that are no answers lose their loss.
void DataLoader::keep_answers(int64_t first, std::span<int32_t> targets) const {
  auto answer = std::ranges::lower_bound(dataset_.answers(), first + 1, {}, &Answer::position);
  for (int64_t position = first + 1; int32_t & target : targets) {
    const bool asked = answer != dataset_.answers().end() && answer->position == position;
    if (!asked) target = kNoTarget;
    while (answer != dataset_.answers().end() && answer->position == position) ++answer;
    ++position;
  }
}

void DataLoader::will_need(int64_t first_sample, int64_t sequences) const {
  for (int64_t sample = first_sample; sample < first_sample + sequences; ++sample) {
    dataset_.will_need(window(sample) * options_.sequence_length, options_.sequence_length + 1);
  }
}

}  // namespace tessera
