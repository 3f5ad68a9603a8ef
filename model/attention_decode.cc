#include <algorithm>
#include <array>
#include <numeric>

#include "kernels/cache_append.h"
#include "kernels/core/copy.h"
#include "kernels/group_heads.h"
#include "model/attention_layer.h"

// One token at a time against a cache: the same projections and formulas as the training forward.

namespace tessera {

namespace {

// Cuts tensors from one buffer; a first pass without memory counts the bytes.
class Cutter {
 public:
  explicit Cutter(const Buffer* buffer) : buffer_(buffer) {}
  TensorView cut(DType dtype, Shape shape) {
    const int64_t begin = at_;
    at_ += aligned(shape.elements() * size_of(dtype));
    return buffer_ == nullptr ? TensorView{} : buffer_->view(dtype, shape, begin);
  }
  int64_t bytes() const { return at_; }

 private:
  const Buffer* buffer_;
  int64_t at_ = 0;
};

}  // namespace

AttentionCache AttentionLayer::make_cache(Stream& stream, const SparsityPlan& plan, int64_t block,
                                          int64_t max_tokens) const {
  const int64_t d = options_.heads.head_dim;
  const DType dtype = options_.heads.dtype;
  const int64_t pages = (max_tokens + block - 1) / block;
  const auto global = static_cast<int64_t>(global_groups_.size());
  const auto local = static_cast<int64_t>(local_groups_.size());
  AttentionCache cache;
  cache.window = {
      .window = std::min(plan.window, max_tokens), .sink_tokens = options_.sink_tokens, .spare = 0};
  const auto cut_all = [&](Cutter cutter) {
    const Shape all{global, pages * block, d};
    const Shape ring{local, cache.window.rows(), d};
    if (global > 0) cache.global_k = cutter.cut(dtype, all);
    if (global > 0) cache.global_v = cutter.cut(dtype, all);
    if (local > 0) cache.local_k = cutter.cut(dtype, ring);
    if (local > 0) cache.local_v = cutter.cut(dtype, ring);
    if (plan.gated && gate_) {
      const Gate::Options& gate = options_.gate;
      cache.gate = GateCache{
          .state = cutter.cut(DType::kF32, {global, d + 2}),
          .kbar = cutter.cut(dtype, {global, d}),
          .kt = cutter.cut(DType::kF32, {global, pages * gate.gate_keys, gate.gate_dim}),
          .nodes = gate.tree.enabled()
                       ? cutter.cut(DType::kF32, {global, tree_rows(pages), gate.gate_dim})
                       : TensorView{},
          .page_rows = cutter.cut(DType::kI32, {pages})};
    }
    return cutter.bytes();
  };
  cache.buffer = Buffer(stream.device(), cut_all(Cutter(nullptr)));
  cut_all(Cutter(&cache.buffer));
  if (cache.gate) {
    std::vector<int32_t> rows;
    for (int64_t page = 0; page < pages; ++page) {
      rows.push_back(static_cast<int32_t>(page * block));
    }
    copy(stream, host_view(rows), cache.gate->page_rows);
  }
  return cache;
}

void AttentionLayer::decode(StepContext& step, ConstTensorView x, int64_t position,
                            AttentionCache& cache, TensorView y) const {
  const Arena::Scope scratch(step.arena);
  const ConstTensorView positions = step.tokens.share.positions;
  const int64_t d = options_.heads.head_dim;
  const auto output = [&](const HeadProjection& kind) {
    return step.arena.allocate(x.dtype(), {kind.share().heads, d}, "attention.decode_o");
  };
  if (local_) {
    const HeadProjection::Saved now = local_->project(step, x, norms());
    local_->rotate(step, now, positions);
    const TensorView o = output(*local_);
    decode_local(step, now, position, cache, o);
    local_->output(step, now, o.reshape({1, local_->share().heads, d}), y, /*accumulate=*/false);
  }
  if (global_) {
    const HeadProjection::Saved now = global_->project(step, x, norms());
    const int64_t group_heads = global_->share().group_heads;
    const auto groups = static_cast<int64_t>(global_groups_.size());
    const TensorView q0 =
        step.arena.allocate(x.dtype(), {groups, 1, group_heads * d}, "attention.q0");
    const TensorView k0 = step.arena.allocate(x.dtype(), {groups, 1, d}, "attention.k0");
    take_groups(step.stream,
                {.y = q0, .x = now.q, .groups = global_groups_, .group_heads = group_heads});
    take_groups(step.stream, {.y = k0, .x = now.k, .groups = global_groups_, .group_heads = 1});
    global_->rotate(step, now, positions);
    const TensorView o = output(*global_);
    decode_global(step, now, q0, k0, position, cache, o);
    global_->output(step, now, o.reshape({1, global_->share().heads, d}), y,
                    /*accumulate=*/local_.has_value());
  }
}

void AttentionLayer::attend_spans(StepContext& step, const HeadProjection& kind, ConstTensorView q,
                                  const SpanLists& lists, std::span<const int32_t> groups,
                                  ConstTensorView k, ConstTensorView v, TensorView o) const {
  decode_attention(step.stream, {.o = o,
                                 .lse = {},
                                 .q = q.reshape(o.shape()),
                                 .k = k,
                                 .v = v,
                                 .spans = lists.spans,
                                 .log_gates = lists.log_gates,
                                 .counts = lists.counts,
                                 .groups = groups,
                                 .kv_heads = kind.share().groups(),
                                 .scale = scale_,
                                 .sink_logits = kind.sink_logits()});
}

void AttentionLayer::decode_local(StepContext& step, const HeadProjection::Saved& now,
                                  int64_t position, AttentionCache& cache, TensorView o) const {
  const int64_t row = cache.window.row(position);
  const std::span<const int32_t> groups = local_groups_;
  cache_append(step.stream, {.cache = cache.local_k, .x = now.k, .groups = groups, .row = row});
  cache_append(step.stream, {.cache = cache.local_v, .x = now.v, .groups = groups, .row = row});
  std::array<CacheSpan, 3> spans{};
  const int64_t count = cache.window.spans(position, spans);
  attend_spans(step, *local_, now.q,
               same_spans(step, groups, {spans.data(), static_cast<size_t>(count)}), groups,
               cache.local_k, cache.local_v, o);
}

AttentionLayer::SpanLists AttentionLayer::same_spans(StepContext& step,
                                                     std::span<const int32_t> groups,
                                                     std::span<const CacheSpan> spans) const {
  const auto count = static_cast<int64_t>(spans.size());
  const auto all = static_cast<int64_t>(groups.size());
  std::vector<int32_t> rows;
  for (int64_t group = 0; group < all; ++group) {
    for (const CacheSpan& span : spans) rows.insert(rows.end(), {span.first_row, span.rows});
  }
  const std::vector<int32_t> counts(groups.size(), static_cast<int32_t>(count));
  return {.spans = to_arena(step.stream, step.arena, host_view(rows).reshape({all, count, 2}),
                            "attention.spans"),
          .log_gates = {},
          .counts = to_arena(step.stream, step.arena, host_view(counts), "attention.span_counts")};
}

void AttentionLayer::decode_global(StepContext& step, const HeadProjection::Saved& now,
                                   ConstTensorView q0, ConstTensorView k0, int64_t position,
                                   AttentionCache& cache, TensorView o) const {
  const std::span<const int32_t> groups = global_groups_;
  cache_append(step.stream,
               {.cache = cache.global_k, .x = now.k, .groups = groups, .row = position});
  cache_append(step.stream,
               {.cache = cache.global_v, .x = now.v, .groups = groups, .row = position});
  if (!cache.gate) {
    const std::array<CacheSpan, 1> everything{CacheSpan{0, static_cast<int32_t>(position + 1)}};
    attend_spans(step, *global_, now.q, same_spans(step, groups, everything), groups,
                 cache.global_k, cache.global_v, o);
    return;
  }
  const Gate::Choice choice = gate_->choose(step, q0, position, *cache.gate);
  attend_spans(step, *global_, now.q,
               {.spans = choice.spans, .log_gates = choice.log_gates, .counts = choice.counts},
               groups, cache.global_k, cache.global_v, o);
  gate_->remember(step, k0, position, *cache.gate);
}

}  // namespace tessera
