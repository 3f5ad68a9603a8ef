#include "runtime/config/batch_schedule.h"

#include <algorithm>

#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

template <class Points>
int64_t value_at(const Points& points, int64_t step, int64_t otherwise) {
  if (points.empty()) return otherwise;
  int64_t value = points[0].value();
  for (const WholePoint& point : points) {
    if (point.step() <= step) value = point.value();
  }
  return value;
}

/// Sequences of a step with sequences of `length` tokens for each of one at full length.
int64_t pieces(const TrainConfig& config, int64_t length) {
  if (config.curriculum().keep() == CurriculumConfig::SEQUENCES) return 1;
  return std::max<int64_t>(1, config.batch().sequence_length() / std::max<int64_t>(1, length));
}

}  // namespace

BatchSize batch_size_at(const TrainConfig& config, int64_t step) {
  const CurriculumConfig& curriculum = config.curriculum();
  const BatchConfig& batch = config.batch();
  const int64_t length = value_at(curriculum.sequence_length(), step, batch.sequence_length());
  const int64_t sequences = value_at(curriculum.sequences(), step, batch.sequences());
  return {.sequences = sequences * pieces(config, length), .sequence_length = length};
}

std::vector<int64_t> batch_changes(const TrainConfig& config) {
  std::vector<int64_t> steps{1};
  const CurriculumConfig& curriculum = config.curriculum();
  for (const auto* points : {&curriculum.sequence_length(), &curriculum.sequences()}) {
    for (const WholePoint& point : *points) {
      if (point.step() > 1) steps.push_back(point.step());
    }
  }
  std::sort(steps.begin(), steps.end());
  steps.erase(std::unique(steps.begin(), steps.end()), steps.end());
  std::erase_if(steps, [&](int64_t step) {
    return step > 1 && batch_size_at(config, step) == batch_size_at(config, step - 1);
  });
  return steps;
}

int64_t steps_of_tokens(const TrainConfig& config, int64_t first, int64_t tokens) {
  int64_t step = first;
  for (const int64_t next : batch_changes(config)) {
    if (next <= step) continue;
    const int64_t each = std::max<int64_t>(1, batch_size_at(config, step).tokens());
    if (tokens <= 0 || (tokens - 1) / each < next - step) break;
    tokens -= (next - step) * each;
    step = next;
  }
  const int64_t each = std::max<int64_t>(1, batch_size_at(config, step).tokens());
  return step - first + (tokens > 0 ? (tokens - 1) / each + 1 : 0);
}

int64_t last_steps_of_tokens(const TrainConfig& config, int64_t last, int64_t tokens) {
  const std::vector<int64_t> changes = batch_changes(config);
  int64_t end = std::max<int64_t>(0, last) + 1;  // of what is not counted yet
  for (auto begin = changes.rbegin(); begin != changes.rend(); ++begin) {
    if (*begin >= end) continue;
    const int64_t each = std::max<int64_t>(1, batch_size_at(config, *begin).tokens());
    const int64_t needed = tokens > 0 ? (tokens - 1) / each + 1 : 0;
    if (needed <= end - *begin) return last + 1 - end + needed;
    tokens -= (end - *begin) * each;
    end = *begin;
  }
  return std::max<int64_t>(0, last);
}

int64_t micro_sequences_of(const TrainConfig& config, const BatchSize& size, int64_t batch_ranks) {
  const int64_t per_rank = size.sequences / batch_ranks;
  const int64_t micro = config.batch().micro_sequences() * pieces(config, size.sequence_length);
  return micro > 0 ? std::min(micro, per_rank) : per_rank;
}

double weight_at(const google::protobuf::RepeatedPtrField<Point>& points, int64_t step) {
  if (points.empty()) return 0;
  const auto after = std::find_if(points.begin(), points.end(),
                                  [&](const Point& point) { return point.step() > step; });
  if (after == points.begin()) return after->value();
  const Point& from = *std::prev(after);
  if (after == points.end()) return from.value();
  const double share =
      static_cast<double>(step - from.step()) / static_cast<double>(after->step() - from.step());
  return from.value() + share * (after->value() - from.value());
}

double pool_at(const TrainConfig& config, int64_t step) {
  const auto& points = config.curriculum().difficulty();
  if (points.empty()) return 1;
  double share = points[0].value();
  for (const Point& point : points) {
    if (point.step() <= step) share = point.value();
  }
  return share;
}

}  // namespace tessera
