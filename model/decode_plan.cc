#include "model/decode_plan.h"

#include <array>
#include <numeric>

#include "kernels/core/copy.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

namespace {

/// Lists that travel to the device as one, and where each of them is in it.
class Lists {
 public:
  void add(ConstTensorView& list, std::span<const int32_t> numbers, Shape shape) {
    places_.push_back({&list, std::ssize(numbers_), shape});
    numbers_.insert(numbers_.end(), numbers.begin(), numbers.end());
  }
  void send(Stream& stream, Arena& arena) {
    const TensorView there = to_arena(stream, arena, host_view(numbers_), "decode.plan");
    for (const Place& place : places_) {
      *place.list = there.rows(place.first, place.shape.elements()).reshape(place.shape);
    }
  }

 private:
  struct Place {
    ConstTensorView* list;
    int64_t first;
    Shape shape;
  };
  std::vector<int32_t> numbers_;
  std::vector<Place> places_;
};

}  // namespace

DecodePlan plan_decoding(Stream& stream, Arena& arena, const DecodeInput& input,
                         const DecodeOptions& options) {
  const int64_t smear_tokens = options.smear_tokens;
  const auto part = static_cast<int32_t>(options.block / options.gate_keys);
  const auto sequences = static_cast<int64_t>(input.positions.size());
  CHECK(sequences >= 1, "decode: there are no sequences");
  expect_tensor(input.ids, DType::kI32, {sequences, 1 + smear_tokens}, "decode: ids",
                "[sequences, 1 + smear tokens]");
  std::vector<int32_t> starts, rows, spans, counts, everything, parts, ids;
  for (int32_t s = 0; s <= sequences; ++s) starts.push_back(s);
  for (const int32_t position : input.positions) {
    std::array<CacheSpan, 3> of_token{};
    counts.push_back(static_cast<int32_t>(options.window.spans(position, of_token)));
    rows.push_back(static_cast<int32_t>(options.window.row(position)));
    for (const CacheSpan& span : of_token) spans.insert(spans.end(), {span.first_row, span.rows});
    everything.insert(everything.end(), {0, position + 1});
    parts.push_back((position + 1) % part == 0 ? position / part : -1);
  }
  const auto given = input.ids.as<int32_t>();
  for (int64_t j = 0; j <= smear_tokens; ++j) {
    for (int64_t s = 0; s < sequences; ++s) {
      ids.push_back(given[static_cast<size_t>(s * (1 + smear_tokens) + j)]);
    }
  }
  const std::span<const int32_t> of_now(ids.data(), static_cast<size_t>(sequences));
  const auto of_past = std::span<const int32_t>(ids).subspan(static_cast<size_t>(sequences));

  DecodePlan plan;
  plan.tokens.sequences = sequences;
  plan.tokens.sequence_length = 1;
  plan.tokens.share.block = options.block;
  SegmentGrid& share = plan.tokens.share;
  Lists lists;
  lists.add(share.starts, starts, {sequences + 1});
  lists.add(share.positions, input.positions, {sequences});
  lists.add(plan.tokens.ids, of_now, {sequences});
  if (smear_tokens > 0) lists.add(plan.tokens.before, of_past, {smear_tokens, sequences});
  lists.add(plan.window_rows, rows, {sequences});
  lists.add(plan.window_spans, spans, {1, sequences, 3, 2});
  lists.add(plan.window_counts, counts, {1, sequences});
  lists.add(plan.all_spans, everything, {1, sequences, 1, 2});
  lists.add(plan.all_counts, std::vector<int32_t>(input.positions.size(), 1), {1, sequences});
  lists.add(plan.completed_parts, parts, {sequences});
  lists.send(stream, arena);
  plan.places = share.starts.rows(0, sequences);
  share.tile_starts = share.starts;
  share.block_starts = share.starts;
  plan.tokens.scope_starts = share.starts;
  return plan;
}

PrefillPlan plan_prefill(Stream& stream, Arena& arena, int64_t place, int64_t tokens,
                         const DecodeOptions& options) {
  CHECK(tokens >= options.block && tokens % options.block == 0, "prefill: a prompt has ", tokens,
        " tokens, expected whole pages of ", options.block);
  const WindowCache& window = options.window;
  std::vector<int32_t> rows(static_cast<size_t>(tokens)), window_rows;
  std::iota(rows.begin(), rows.end(), 0);
  for (int64_t position = 0; position < tokens; ++position) {
    const bool kept = position < window.sink_tokens || position >= tokens - window.window;
    window_rows.push_back(kept ? static_cast<int32_t>(window.row(position)) : -1);
  }
  const std::vector<int32_t> places(static_cast<size_t>(tokens), static_cast<int32_t>(place));

  PrefillPlan plan;
  plan.place = place;
  plan.pages = tokens / options.block;
  Lists lists;
  lists.add(plan.places, places, {tokens});
  lists.add(plan.rows, rows, {tokens});
  lists.add(plan.window_rows, window_rows, {tokens});
  lists.send(stream, arena);
  plan.page_numbers = plan.rows.rows(0, plan.pages);
  return plan;
}

}  // namespace tessera
