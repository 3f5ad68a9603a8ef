#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/data/dataset.h"
#include "runtime/data/sample_order.h"

namespace tessera {

/// What a model trains on: `sequences` windows of `sequence_length` tokens, one after the other on
/// one token axis of sequences * sequence_length entries.
struct MicroBatch {
  std::vector<int32_t> tokens;   ///< [sequences * sequence_length]
  std::vector<int32_t> targets;  ///< [sequences * sequence_length]: the next token, or kNoTarget
  /// [segments + 1], ascending, first 0, last the number of tokens: attention segment s is
  /// [starts[s], starts[s + 1]). `segments` = sequences * segments_per_sequence() always; what is
  /// not needed are empty segments at the end.
  std::vector<int32_t> starts;
};

/// In MicroBatch::targets: this position has no loss.
inline constexpr int32_t kNoTarget = -1;

struct DataLoaderOptions {
  int64_t sequence_length = 0;  ///< tokens, at least 1
  /// Every document start begins a segment, and the last token of a document has no target.
  bool document_boundaries = true;
  /// Segments per sequence; documents that come later in it run on in the last one.
  int64_t max_documents = 64;
  /// True: samples in the order of SampleOrder(windows, seed), epoch after epoch.
  /// False: sample i is window i modulo windows; for validation.
  bool shuffle = true;
  uint64_t seed = 0;
};

class DataLoader;

/// A row of a micro-batch: `loader`'s tokens from `first` on.
struct DataWindow {
  const DataLoader* loader = nullptr;
  int64_t first = 0;

  friend bool operator==(const DataWindow&, const DataWindow&) = default;
};

/// Overwrites `out` with rows of `length` tokens, one per window, as DataLoader::fill does. The
/// loaders have the same options but for the seed.
void fill_windows(std::span<const DataWindow> windows, int64_t length, MicroBatch& out);

/// Cuts a data set into windows: window w is tokens [w * L, w * L + L], L = sequence_length, the
/// last of which is only a target. There are (tokens - 1) / L, whatever the documents; the tokens
/// left over at the end are not used. Of a data set with answers, only these are targets.
/// Sample i, an endless sequence, is a pure function of (data set, options, i). So a run resumes
/// from the number of samples seen, and any ranks that together ask for a range of samples get
/// the same global batch.
class DataLoader {
 public:
  /// Keeps a reference to `dataset`. Throws Error: kBadData when it has no whole window, kUsage
  /// when the samples of a task do not fit windows of this length.
  DataLoader(const TokenDataset& dataset, const DataLoaderOptions& options);

  /// Windows in one epoch.
  int64_t windows() const { return order_.count(); }
  int64_t segments_per_sequence() const;
  /// Whether only answers are targets.
  bool has_answers() const { return dataset_.has_answers(); }
  int64_t sequence_length() const { return options_.sequence_length; }
  uint64_t seed() const { return options_.seed; }
  /// The window that sample `sample` >= 0 shows.
  int64_t window(int64_t sample) const;
  /// Overwrites `out` with samples [first_sample, first_sample + sequences). Reuses its memory: a
  /// second call of the same size allocates nothing. May be called by several threads at once.
  /// Throws Error (kBadData) when a file is damaged.
  void fill(int64_t first_sample, int64_t sequences, MicroBatch& out) const;
  /// As fill, with sequences of `length` tokens, a divisor of sequence_length: sample i is piece
  /// i mod r of the window of sample i / r, with r = sequence_length / length.
  void fill_pieces(int64_t first_sample, int64_t sequences, int64_t length, MicroBatch& out) const;
  /// Asks the system to read those samples into its cache. Never waits, never fails.
  void will_need(int64_t first_sample, int64_t sequences) const;

 private:
  friend void fill_windows(std::span<const DataWindow> windows, int64_t length, MicroBatch& out);
  void fill_sequence(int64_t first, int64_t length, int64_t row, MicroBatch& out) const;
  void keep_answers(int64_t first, std::span<int32_t> targets) const;

  const TokenDataset& dataset_;
  DataLoaderOptions options_;
  SampleOrder order_;
};

}  // namespace tessera
