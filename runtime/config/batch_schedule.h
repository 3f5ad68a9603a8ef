#pragma once

#include <cstdint>
#include <vector>

namespace google::protobuf {
template <class Element>
class RepeatedPtrField;
}

namespace tessera {

class Point;
class TrainConfig;

/// The shape of the global batch of one step.
struct BatchSize {
  int64_t sequences = 0;
  int64_t sequence_length = 0;  ///< tokens
  int64_t tokens() const { return sequences * sequence_length; }

  friend bool operator==(const BatchSize&, const BatchSize&) = default;
};

/// The batch of step `step` (counts from 1), by the curriculum of a configuration whose points have
/// steps. With L the sequence length of the step, b the sequences that it would have at full length
/// Lmax = batch.sequence_length:
///   keep TOKENS:     b Lmax / L sequences of L tokens
///   keep SEQUENCES:  b sequences of L tokens
BatchSize batch_size_at(const TrainConfig& config, int64_t step);

/// The steps where the batch gets another shape, ascending; the first is 1.
std::vector<int64_t> batch_changes(const TrainConfig& config);

/// The least number of steps that, from step `first` on, together have `tokens` tokens or more.
int64_t steps_of_tokens(const TrainConfig& config, int64_t first, int64_t tokens);

/// The least number of steps, `last` the last of them, that together have `tokens` tokens or more;
/// at most `last`.
int64_t last_steps_of_tokens(const TrainConfig& config, int64_t last, int64_t tokens);

/// Sequences of a micro-batch of one of `batch_ranks` parts of such a batch: those of
/// batch.micro_sequences, or as many tokens as those have, or fewer when the part has no more.
int64_t micro_sequences_of(const TrainConfig& config, const BatchSize& size, int64_t batch_ranks);

/// On straight lines between points, which have steps: the value at `step`. Before the first point
/// and after the last one theirs; 0 without any.
double weight_at(const google::protobuf::RepeatedPtrField<Point>& points, int64_t step);

/// The share of the windows that difficulty admits in step `step`; 1 without points.
double pool_at(const TrainConfig& config, int64_t step);

}  // namespace tessera
