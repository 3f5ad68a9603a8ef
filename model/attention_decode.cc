#include <algorithm>
#include <array>
#include <numeric>

#include "kernels/cache_append.h"
#include "kernels/elementwise.h"
#include "kernels/rope.h"
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

AttentionCache AttentionLayer::make_cache(Device device, const SparsityPlan& plan, int64_t block,
                                          int64_t max_tokens) const {
  const int64_t d = options_.head_dim;
  const int64_t pages = (max_tokens + block - 1) / block;
  const auto global = static_cast<int64_t>(global_.size());
  const auto local = static_cast<int64_t>(local_.size());
  AttentionCache cache;
  cache.window = {
      .window = std::min(plan.window, max_tokens), .sink_tokens = options_.sink_tokens, .spare = 0};
  const auto cut_all = [&](Cutter cutter) {
    const Shape all{global, pages * block, d};
    const Shape ring{local, cache.window.rows(), d};
    if (global > 0) cache.global_k = cutter.cut(options_.dtype, all);
    if (global > 0) cache.global_v = cutter.cut(options_.dtype, all);
    if (local > 0) cache.local_k = cutter.cut(options_.dtype, ring);
    if (local > 0) cache.local_v = cutter.cut(options_.dtype, ring);
    if (plan.gated && gate_) {
      const Gate::Options& gate = options_.gate;
      cache.gate =
          GateCache{.state = cutter.cut(DType::kF32, {global, d + 2}),
                    .kbar = cutter.cut(options_.dtype, {global, d}),
                    .kt = cutter.cut(DType::kF32, {global, pages * gate.gate_keys, gate.gate_dim}),
                    .page_rows = cutter.cut(DType::kI32, {pages})};
    }
    return cutter.bytes();
  };
  cache.buffer = Buffer(device, cut_all(Cutter(nullptr)));
  cut_all(Cutter(&cache.buffer));
  if (cache.gate && device.kind == DeviceKind::kCpu) {
    const auto rows = cache.gate->page_rows.as<int32_t>();
    for (size_t page = 0; page < rows.size(); ++page) {
      rows[page] = static_cast<int32_t>(static_cast<int64_t>(page) * block);
    }
  }
  return cache;
}

void AttentionLayer::decode(StepContext& step, ConstTensorView x, int64_t position,
                            AttentionCache& cache, TensorView y) const {
  const Arena::Scope scratch(step.arena);
  const int64_t d = options_.head_dim;
  Saved now;
  now.x = x;
  const Unroped unroped_heads = project_heads(step, now, cache.gate.has_value());
  const TensorView o = step.arena.allocate(x.dtype(), {options_.heads, d}, "attention.decode_o");
  if (!local_.empty()) decode_local(step, now, position, cache, o);
  if (!global_.empty()) decode_global(step, now, unroped_heads, position, cache, o);
  const ConstTensorView mixed = o.reshape({1, options_.heads * d});
  if (output_gate_) {
    const TensorView gate = step.arena.allocate(x.dtype(), mixed.shape(), "attention.gate");
    const TensorView gated = step.arena.allocate(x.dtype(), mixed.shape(), "attention.gated");
    output_gate_->forward(step, x, gate);
    sigmoid_gate_forward(step.stream, {.y = gated, .x = mixed, .g = gate});
    out_.forward(step, gated, y);
  } else {
    out_.forward(step, mixed, y);
  }
}

void AttentionLayer::attend_spans(StepContext& step, const Saved& now, const SpanLists& lists,
                                  std::span<const int32_t> groups, ConstTensorView k,
                                  ConstTensorView v, TensorView o) const {
  decode_attention(step.stream, {.o = o,
                                 .lse = {},
                                 .q = now.q.reshape({options_.heads, options_.head_dim}),
                                 .k = k,
                                 .v = v,
                                 .spans = lists.spans,
                                 .log_gates = lists.log_gates,
                                 .counts = lists.counts,
                                 .groups = groups,
                                 .kv_heads = options_.kv_heads,
                                 .scale = scale_,
                                 .sink_logits = sink_logits()});
}

void AttentionLayer::decode_local(StepContext& step, const Saved& now, int64_t position,
                                  AttentionCache& cache, TensorView o) const {
  const int64_t row = cache.window.row(position);
  cache_append(step.stream, {.cache = cache.local_k, .x = now.k, .groups = local_, .row = row});
  cache_append(step.stream, {.cache = cache.local_v, .x = now.v, .groups = local_, .row = row});
  std::array<CacheSpan, 3> spans{};
  const int64_t count = cache.window.spans(position, spans);
  attend_spans(step, now, same_spans(step, local_, {spans.data(), static_cast<size_t>(count)}),
               local_, cache.local_k, cache.local_v, o);
}

AttentionLayer::SpanLists AttentionLayer::same_spans(StepContext& step,
                                                     std::span<const int32_t> groups,
                                                     std::span<const CacheSpan> spans) const {
  const auto count = static_cast<int64_t>(spans.size());
  const auto all = static_cast<int64_t>(groups.size());
  const TensorView rows = step.arena.allocate(DType::kI32, {all, count, 2}, "attention.spans");
  const TensorView counts = step.arena.allocate(DType::kI32, {all}, "attention.span_counts");
  if (step.stream.on(DeviceKind::kCpu)) {
    const auto to = rows.as<int32_t>();
    for (size_t i = 0; i < to.size() / 2; ++i) {
      to[2 * i] = spans[i % spans.size()].first_row;
      to[2 * i + 1] = spans[i % spans.size()].rows;
    }
    std::ranges::fill(counts.as<int32_t>(), static_cast<int32_t>(count));
  }
  return {.spans = rows, .log_gates = {}, .counts = counts};
}

void AttentionLayer::decode_global(StepContext& step, const Saved& now,
                                   const Unroped& unroped_heads, int64_t position,
                                   AttentionCache& cache, TensorView o) const {
  cache_append(step.stream,
               {.cache = cache.global_k, .x = now.k, .groups = global_, .row = position});
  cache_append(step.stream,
               {.cache = cache.global_v, .x = now.v, .groups = global_, .row = position});
  if (!cache.gate) {
    const std::array<CacheSpan, 1> everything{CacheSpan{0, static_cast<int32_t>(position + 1)}};
    attend_spans(step, now, same_spans(step, global_, everything), global_, cache.global_k,
                 cache.global_v, o);
    return;
  }
  const Gate::Choice choice = gate_->choose(step, unroped_heads.q0, position, *cache.gate);
  attend_spans(step, now,
               {.spans = choice.spans, .log_gates = choice.log_gates, .counts = choice.counts},
               global_, cache.global_k, cache.global_v, o);
  gate_->remember(step, unroped_heads.k0, position, *cache.gate);
}

}  // namespace tessera
