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

Block::Activations Block::run(StepContext& step, ConstTensorView x, const Decisions& decisions,
                              TensorView y) const {
  const Norm::Output n1 = attention_norm_.forward(step, x);
  const TensorView x2 = step.arena.allocate(x.dtype(), x.shape(), "block.attention");
  AttentionLayer::Saved attention = attention_.forward(step, n1.y, decisions.attention, x2);
  const Norm::Output n2 = feed_forward_norm_.forward_sum(step, x2, x);
  Activations activations{.attention_norm = n1.saved,
                          .attention = std::move(attention),
                          .feed_forward_norm = n2.saved,
                          .feed_forward = Mlp::Saved{}};
  if (const Mlp* mlp = std::get_if<Mlp>(&feed_forward_)) {
    activations.feed_forward = mlp->forward(step, n2.y, y);
  } else {
    activations.feed_forward = moe()->forward(step, n2.y, *decisions.moe, y);
  }
  add(step.stream, {.y = y, .a = y, .b = x2});
  return activations;
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
  (void)run(step, x, allocate_decisions(step), y);
  return y;
}

void Block::backward(StepContext& step, const Saved& saved, TensorView d) const {
  const Arena::Scope scratch(step.arena);
  std::optional<Activations> recomputed;
  if (!saved.activations) {
    StepContext again{step.stream, step.arena, step.grid,      step.sparsity,
                      step.router, step.sums,  step.sequences, /*recompute=*/true};
    const TensorView unused = step.arena.allocate(d.dtype(), d.shape(), "block.unused_y");
    recomputed = run(again, saved.x, saved.decisions, unused);
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
