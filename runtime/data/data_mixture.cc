#include "runtime/data/data_mixture.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/core/error.h"

namespace tessera {

namespace {

/// 2^64 times the fractional part of the golden ratio, odd.
constexpr uint64_t kGoldenPart = 0x9E3779B97F4A7C15;

int64_t rounded_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

size_t source_of(int64_t sample, const std::vector<double>& weights) {
  const uint64_t turned = static_cast<uint64_t>(sample) * kGoldenPart;
  const double at = static_cast<double>(turned >> 11) * 0x1p-53;
  double end = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    end += weights[i];
    if (at < end) return i + 1;
  }
  return 0;
}

DataMixture::DataMixture(std::vector<Source> sources, int64_t stripe)
    : sources_(std::move(sources)), stripe_(stripe) {
  CHECK(!sources_.empty() && stripe >= 1, "data mixture: ", sources_.size(), " sources, stripe ",
        stripe, ", expected at least 1 of both");
  for (const Source& source : sources_) {
    const auto ranked = static_cast<int64_t>(source.easiest_first.size());
    CHECK(ranked == 0 || ranked == source.loader->windows(), "data mixture: source ", source.name,
          " ranks ", ranked, " windows, expected ", source.loader->windows());
    CHECK(source.loader->sequence_length() == longest(), "data mixture: source ", source.name,
          " has windows of ", source.loader->sequence_length(), " tokens, expected ", longest());
  }
}

DataWindow DataMixture::window_at(const Source& source, int64_t tokens,
                                  const DataDemand& demand) const {
  const int64_t length = demand.sequence_length;
  const int64_t stripe_tokens = stripe_ * longest();
  const int64_t piece = tokens % stripe_tokens / length;
  const int64_t sample = tokens / stripe_tokens * stripe_ + piece % stripe_;
  int64_t window = 0;
  if (source.easiest_first.empty() || demand.pool >= 1) {
    window = source.loader->window(sample);
  } else {
    const auto all = static_cast<double>(source.loader->windows());
    const int64_t pool = std::max<int64_t>(1, std::llround(std::ceil(demand.pool * all - 1e-9)));
    window = source.easiest_first[static_cast<size_t>(
        SampleOrder(pool, source.loader->seed()).at(sample))];
  }
  return {.loader = source.loader, .first = window * longest() + piece / stripe_ * length};
}

DataMixture::Taken DataMixture::take(const DataPosition& position, const DataDemand& demand) const {
  const int64_t length = demand.sequence_length;
  CHECK(length >= 1 && longest() % length == 0 && demand.sequences >= 1,
        "data mixture: ", demand.sequences, " sequences of ", length,
        " tokens, expected a divisor of ", longest());
  CHECK(demand.weights.size() + 1 == sources_.size() && demand.pool > 0,
        "data mixture: ", demand.weights.size(), " weights and pool ", demand.pool, ", expected ",
        sources_.size() - 1, " and above 0");
  Taken taken{.windows = {}, .next = position};
  DataPosition& next = taken.next;
  if (next.tokens.empty() && next.samples > 0) {
    next.tokens[sources_[0].name] = next.samples * longest();
  }
  const bool other = next.sequence_length != 0 && next.sequence_length != length;
  std::vector<int64_t*> tokens;
  for (const Source& source : sources_) {
    int64_t& at = next.tokens[source.name];
    at = rounded_up(at, other ? stripe_ * longest() : length);
    tokens.push_back(&at);
  }
  taken.windows.reserve(static_cast<size_t>(demand.sequences));
  for (int64_t row = 0; row < demand.sequences; ++row) {
    const size_t source = source_of(next.samples + row, demand.weights);
    taken.windows.push_back(window_at(sources_[source], *tokens[source], demand));
    *tokens[source] += length;
  }
  next.samples += demand.sequences;
  next.sequence_length = length;
  return taken;
}

}  // namespace tessera
