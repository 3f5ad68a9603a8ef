#include "model/block.h"

#include <utility>

#include "kernels/elementwise.h"

namespace tessera {

Block::Block(Norm attention_norm, AttentionLayer attention, Norm feed_forward_norm,
             std::variant<Mlp, Moe> feed_forward, Recompute recompute)
    : attention_norm_(std::move(attention_norm)),
      attention_(std::move(attention)),
      feed_forward_norm_(std::move(feed_forward_norm)),
      feed_forward_(std::move(feed_forward)),
      recompute_(recompute) {}

Block::Decisions Block::allocate_decisions(StepContext& step) const {
  Decisions decisions;
  decisions.attention = attention_.allocate_decision(step);
  if (moe() != nullptr) decisions.moe = moe()->allocate_decision(step);
  return decisions;
}

Block::Activations Block::run(StepContext& step, ConstTensorView x, Decisions& decisions,
                              TensorView y) const {
  const Norm::Output normed = attention_norm_.forward(step, x);
  const TensorView x2 = step.arena.allocate(x.dtype(), x.shape(), "block.attention");
  Activations activations{.attention_norm = normed.saved,
                          .attention = attention_.forward(step, normed.y, decisions.attention, x2),
                          .feed_forward_norm = {},
                          .feed_forward = Mlp::Saved{}};
  run_feed_forward(step, activations, x, x2, decisions.moe, y);
  return activations;
}

// x2 is the attention's output and becomes the residual stream after it.
void Block::run_feed_forward(StepContext& step, Activations& activations, ConstTensorView x,
                             TensorView x2, std::optional<Moe::Decision>& decision,
                             TensorView y) const {
  const Norm::Output normed = feed_forward_norm_.forward_sum(step, x2, x);
  activations.feed_forward_norm = normed.saved;
  if (const Mlp* mlp = std::get_if<Mlp>(&feed_forward_)) {
    activations.feed_forward = mlp->forward(step, normed.y, y);
  } else {
    activations.feed_forward = moe()->forward(step, normed.y, *decision, y);
  }
  add(step.stream, {.y = y, .a = y, .b = x2});
}

TensorView Block::decode(StepContext& step, ConstTensorView x, const DecodePlan& plan,
                         AttentionCache& cache) const {
  const TensorView y = step.arena.allocate(x.dtype(), x.shape(), "block.y");
  const Arena::Scope scratch(step.arena);
  std::optional<Moe::Decision> decision;
  if (moe() != nullptr) decision = moe()->allocate_decision(step);
  const Norm::Output normed = attention_norm_.forward(step, x);
  const TensorView x2 = step.arena.allocate(x.dtype(), x.shape(), "block.attention");
  attention_.decode(step, normed.y, plan, cache, x2);
  Activations unused{
      .attention_norm = {}, .attention = {}, .feed_forward_norm = {}, .feed_forward = Mlp::Saved{}};
  run_feed_forward(step, unused, x, x2, decision, y);
  return y;
}

Block::Output Block::forward(StepContext& step, ConstTensorView x) const {
  const int64_t mark = step.arena.mark();
  const TensorView y = step.arena.allocate(x.dtype(), x.shape(), "block.y");
  Saved saved{.x = x, .decisions = allocate_decisions(step), .activations = {}, .mark = mark};
  const int64_t activations_begin = step.arena.mark();
  saved.activations = run(step, x, saved.decisions, y);
  if (recompute_ == Recompute::kBlock) {
    saved.activations.reset();
    step.arena.release(activations_begin);
  }
  return {.y = y, .saved = std::move(saved)};
}

TensorView Block::infer(StepContext& step, ConstTensorView x) const {
  const TensorView y = step.arena.allocate(x.dtype(), x.shape(), "block.y");
  const Arena::Scope scratch(step.arena);
  Decisions decisions = allocate_decisions(step);
  (void)run(step, x, decisions, y);
  return y;
}

TensorView Block::prefill(StepContext& step, ConstTensorView x, const PrefillPlan& plan,
                          AttentionCache& cache) const {
  const TensorView y = step.arena.allocate(x.dtype(), x.shape(), "block.y");
  const Arena::Scope scratch(step.arena);
  Decisions decisions = allocate_decisions(step);
  const Activations activations = run(step, x, decisions, y);
  attention_.remember(step, activations.attention, plan, cache);
  return y;
}

void Block::backward(StepContext& step, const Saved& saved, TensorView d) const {
  const Arena::Scope scratch(step.arena);
  std::optional<Activations> recomputed;
  if (!saved.activations) {
    StepContext again{step.stream,   step.arena,  step.mesh, step.tokens,
                      step.sparsity, step.router, step.sums, /*recompute=*/true};
    again.layer = step.layer;
    again.mix = step.mix;
    const TensorView unused = step.arena.allocate(d.dtype(), d.shape(), "block.unused_y");
    Decisions decisions = saved.decisions;
    recomputed = run(again, saved.x, decisions, unused);
  }
  const Activations& kept = saved.activations ? *saved.activations : *recomputed;

  const TensorView dnormed = step.arena.allocate(d.dtype(), d.shape(), "block.dnormed");
  const TensorView dx2 = step.arena.allocate(d.dtype(), d.shape(), "block.dx2");
  if (const Mlp* mlp = std::get_if<Mlp>(&feed_forward_)) {
    mlp->backward(step, std::get<Mlp::Saved>(kept.feed_forward), d, dnormed);
  } else {
    moe()->backward(step, std::get<Moe::Saved>(kept.feed_forward), d, dnormed);
  }
  feed_forward_norm_.backward(step, kept.feed_forward_norm, dnormed, dx2, /*dresidual=*/d);
  attention_.backward(step, kept.attention, dx2, dnormed);
  attention_norm_.backward(step, kept.attention_norm, dnormed, d, /*dresidual=*/dx2);
}

}  // namespace tessera
