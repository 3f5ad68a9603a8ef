#include "kernels/elementwise.h"
#include "kernels/group_mix.h"
#include "kernels/reduce.h"
#include "model/attention_layer.h"

namespace tessera {

namespace {

/// The heads as they attend as the step's plan says.
AttentionLayer::Heads full_heads(const AttentionLayer::Heads& heads) {
  AttentionLayer::Heads full = heads;
  full.o = heads.mixed->full;
  full.mixed.reset();
  return full;
}

/// The heads as they attend to the window.
AttentionLayer::Heads windowed_heads(const AttentionLayer::Heads& heads) {
  AttentionLayer::Heads windowed = heads;
  windowed.o = heads.mixed->windowed;
  windowed.lse = heads.mixed->window_lse;
  windowed.mixed.reset();
  return windowed;
}

/// The step in which all attend to the window.
StepContext windowed_step(const StepContext& step) {
  StepContext windowed = step;
  windowed.sparsity.window = step.mix->window;
  return windowed;
}

/// Of all groups those of one kind, in this layer.
template <class View>
View own_groups(const StepContext& step, const HeadProjection& kind, View all) {
  const HeadShare& share = kind.share();
  return all.rows(step.layer, 1).reshape({all.shape()[1]}).rows(share.kind_group, share.groups());
}

}  // namespace

void AttentionLayer::attend_mixed(StepContext& step, const HeadProjection& kind, const Heads& heads,
                                  const SegmentGrid& grid) const {
  CHECK(step.mesh.world().size() == 1, "attention: groups are mixed on ", step.mesh.world().size(),
        " ranks, expected 1");
  CHECK(!step.sparsity.gated, "attention: groups are mixed in a step that chooses blocks");
  StepContext windowed = windowed_step(step);
  attend_dense(step, kind, full_heads(heads), grid);
  attend_dense(windowed, kind, windowed_heads(heads), grid);
  mix_groups(step.stream, {.y = heads.o,
                           .a = heads.mixed->full,
                           .b = heads.mixed->windowed,
                           .shares = own_groups(step, kind, step.mix->shares)});
}

void AttentionLayer::backward_mixed(StepContext& step, const HeadProjection& kind,
                                    const Heads& heads, const SegmentGrid& grid,
                                    const HeadGradients& d) const {
  const Arena::Scope scratch(step.arena);
  StepContext windowed = windowed_step(step);
  const HeadGradients other = allocate_gradients(step, heads);
  const ConstTensorView shares = own_groups(step, kind, step.mix->shares);
  const int64_t groups = shares.shape()[0];
  const TensorView slopes =
      step.arena.allocate(DType::kF32, {groups, heads.o.shape()[0]}, "attention.slopes");
  mix_groups_backward(step.stream, {.da = d.d_o,
                                    .db = other.d_o,
                                    .slopes = slopes,
                                    .dy = d.d_o,
                                    .a = heads.mixed->full,
                                    .b = heads.mixed->windowed,
                                    .shares = shares});
  const TensorView sums = own_groups(step, kind, step.mix->slopes);
  for (int64_t c = 0; c < groups; ++c) {
    add_sum(step.stream, {.total = sums.rows(c, 1), .x = slopes.rows(c, 1)});
  }
  backward_dense(step, kind, full_heads(heads), grid, d);
  backward_dense(windowed, kind, windowed_heads(heads), grid, other);
  add(step.stream, {.y = d.dq, .a = d.dq, .b = other.dq});
  add(step.stream, {.y = d.dkeys, .a = d.dkeys, .b = other.dkeys});
  add(step.stream, {.y = d.dvalues, .a = d.dvalues, .b = other.dvalues});
}

}  // namespace tessera
