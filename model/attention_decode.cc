#include <algorithm>
#include <numeric>

#include "kernels/cache_append.h"
#include "kernels/core/copy.h"
#include "kernels/group_heads.h"
#include "model/attention_layer.h"

// One token of each sequence against its cache: the same projections and formulas as the training
// forward.

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

void append(StepContext& step, ConstTensorView x, ConstTensorView places, ConstTensorView rows,
            std::span<const int32_t> groups, TensorView cache) {
  cache_append(step.stream,
               {.cache = cache, .x = x, .places = places, .rows = rows, .groups = groups});
}

}  // namespace

AttentionCache AttentionLayer::make_cache(Stream& stream, const SparsityPlan& plan, int64_t block,
                                          const CacheSize& size) const {
  const int64_t d = options_.heads.head_dim;
  const DType dtype = options_.heads.dtype;
  const int64_t sequences = size.sequences;
  const int64_t pages = (size.tokens + block - 1) / block;
  const auto global = static_cast<int64_t>(global_groups_.size());
  const auto local = static_cast<int64_t>(local_groups_.size());
  AttentionCache cache;
  cache.window = {.window = std::min(plan.window, size.tokens),
                  .sink_tokens = options_.sink_tokens,
                  .spare = 0};
  const auto cut_all = [&](Cutter cutter) {
    const Shape all{global, sequences, pages * block, d};
    const Shape ring{local, sequences, cache.window.rows(), d};
    if (global > 0) cache.global_k = cutter.cut(dtype, all);
    if (global > 0) cache.global_v = cutter.cut(dtype, all);
    if (local > 0) cache.local_k = cutter.cut(dtype, ring);
    if (local > 0) cache.local_v = cutter.cut(dtype, ring);
    if (plan.gated && gate_) {
      const Gate::Options& gate = options_.gate;
      const Shape keys{global, sequences, pages * gate.gate_keys, gate.gate_dim};
      const Shape nodes{global, sequences, tree_rows(pages), gate.gate_dim};
      cache.gate =
          GateCache{.state = cutter.cut(DType::kF32, {global, sequences, d + 2}),
                    .kbar = cutter.cut(dtype, {global, sequences, d}),
                    .kt = cutter.cut(DType::kF32, keys),
                    .nodes = gate.tree.enabled() ? cutter.cut(DType::kF32, nodes) : TensorView{},
                    .page_rows = cutter.cut(DType::kI32, {sequences, pages})};
    }
    return cutter.bytes();
  };
  cache.buffer = Buffer(stream.device(), cut_all(Cutter(nullptr)));
  cut_all(Cutter(&cache.buffer));
  if (cache.gate) {
    std::vector<int32_t> rows;
    for (int64_t i = 0; i < sequences * pages; ++i) {
      rows.push_back(static_cast<int32_t>(i % pages * block));
    }
    copy(stream, host_view(rows).reshape({sequences, pages}), cache.gate->page_rows);
  }
  return cache;
}

void AttentionLayer::decode(StepContext& step, ConstTensorView x, const DecodePlan& plan,
                            AttentionCache& cache, TensorView y) const {
  const Arena::Scope scratch(step.arena);
  const ConstTensorView positions = step.tokens.share.positions;
  const int64_t d = options_.heads.head_dim;
  const int64_t sequences = x.shape()[0];
  const auto output = [&](const HeadProjection& kind) {
    return step.arena.allocate(x.dtype(), {sequences, kind.share().heads, d}, "attention.decode_o");
  };
  if (local_) {
    const HeadProjection::Saved now = local_->project(step, x, norms());
    local_->rotate(step, now, positions);
    const TensorView o = output(*local_);
    decode_local(step, now, plan, cache, o);
    local_->output(step, now, o, y, /*accumulate=*/false);
  }
  if (global_) {
    const HeadProjection::Saved now = global_->project(step, x, norms());
    const int64_t group_heads = global_->share().group_heads;
    const auto groups = static_cast<int64_t>(global_groups_.size());
    const TensorView q0 =
        step.arena.allocate(x.dtype(), {groups, sequences, group_heads * d}, "attention.q0");
    const TensorView k0 = step.arena.allocate(x.dtype(), {groups, sequences, d}, "attention.k0");
    take_groups(step.stream,
                {.y = q0, .x = now.q, .groups = global_groups_, .group_heads = group_heads});
    take_groups(step.stream, {.y = k0, .x = now.k, .groups = global_groups_, .group_heads = 1});
    global_->rotate(step, now, positions);
    const TensorView o = output(*global_);
    decode_global(step, now, q0, k0, plan, cache, o);
    global_->output(step, now, o, y, /*accumulate=*/local_.has_value());
  }
}

void AttentionLayer::attend_spans(StepContext& step, const HeadProjection& kind, ConstTensorView q,
                                  const SpanLists& lists, std::span<const int32_t> groups,
                                  ConstTensorView k, ConstTensorView v, TensorView o) const {
  decode_attention(step.stream, {.o = o,
                                 .lse = {},
                                 .q = q,
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
                                  const DecodePlan& plan, AttentionCache& cache,
                                  TensorView o) const {
  const std::span<const int32_t> groups = local_groups_;
  append(step, now.k, plan.places, plan.window_rows, groups, cache.local_k);
  append(step, now.v, plan.places, plan.window_rows, groups, cache.local_v);
  attend_spans(step, *local_, now.q,
               {.spans = plan.window_spans, .log_gates = {}, .counts = plan.window_counts}, groups,
               cache.local_k, cache.local_v, o);
}

void AttentionLayer::decode_global(StepContext& step, const HeadProjection::Saved& now,
                                   ConstTensorView q0, ConstTensorView k0, const DecodePlan& plan,
                                   AttentionCache& cache, TensorView o) const {
  const std::span<const int32_t> groups = global_groups_;
  append(step, now.k, plan.places, plan.tokens.share.positions, groups, cache.global_k);
  append(step, now.v, plan.places, plan.tokens.share.positions, groups, cache.global_v);
  if (!cache.gate) {
    attend_spans(step, *global_, now.q,
                 {.spans = plan.all_spans, .log_gates = {}, .counts = plan.all_counts}, groups,
                 cache.global_k, cache.global_v, o);
    return;
  }
  const Gate::Choice choice = gate_->choose(step, q0, *cache.gate);
  attend_spans(step, *global_, now.q,
               {.spans = choice.spans, .log_gates = choice.log_gates, .counts = choice.counts},
               groups, cache.global_k, cache.global_v, o);
  gate_->remember(step, k0, plan, *cache.gate);
}

void AttentionLayer::remember(StepContext& step, const Saved& saved, const PrefillPlan& plan,
                              AttentionCache& cache) const {
  if (local_) {
    const Heads& heads = *saved.local;
    append(step, heads.keys, plan.places, plan.window_rows, local_groups_, cache.local_k);
    append(step, heads.values, plan.places, plan.window_rows, local_groups_, cache.local_v);
  }
  if (global_) {
    const Heads& heads = *saved.global;
    append(step, heads.keys, plan.places, plan.rows, global_groups_, cache.global_k);
    append(step, heads.values, plan.places, plan.rows, global_groups_, cache.global_v);
  }
  if (cache.gate) gate_->remember(step, *saved.selector, plan, *cache.gate);
}

}  // namespace tessera
