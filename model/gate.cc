#include "model/gate.h"

#include <cmath>
#include <vector>

#include "kernels/core/copy.h"
#include "kernels/core/random.h"
#include "kernels/elementwise.h"
#include "kernels/gate_backward.h"
#include "kernels/gate_pool.h"
#include "kernels/matmul.h"
#include "kernels/softplus.h"

namespace tessera {

namespace {

// softplus(x) = 1 nat, the width that the ramp starts with.
constexpr double kInitialWidth = 0.5413248546129181;

ConstTensorView matrix(ConstTensorView stack, int64_t index) {
  return stack.rows(index, 1).reshape({stack.shape()[1], stack.shape()[2]});
}

TensorView matrix(TensorView stack, int64_t index) {
  return stack.rows(index, 1).reshape({stack.shape()[1], stack.shape()[2]});
}

}  // namespace

Gate::Gate(ParameterStore& store, const std::string& name, const Options& options)
    : options_(options), noise_(hash_name(name.c_str())) {
  const int64_t query_dim = options.group_heads * options.head_dim;
  const auto inverse_root = [](int64_t n) { return 1 / std::sqrt(static_cast<double>(n)); };
  query_ =
      &store.declare({.name = name + ".query.weight",
                      .shard = Shard::replicated({options.groups, options.gate_dim, query_dim}),
                      .dtype = options.dtype,
                      .init = inverse_root(query_dim)});
  key_ = &store.declare(
      {.name = name + ".key.weight",
       .shard = Shard::replicated({options.groups, options.gate_dim, options.head_dim}),
       .dtype = options.dtype,
       .init = inverse_root(options.head_dim)});
  pool_ = &store.declare({.name = name + ".pool",
                          .shard = Shard::replicated({options.groups, options.head_dim}),
                          .initializer = Initializer::kConstant,
                          .init = 0,
                          .decay = false});
  width_ = &store.declare({.name = name + ".width",
                           .shard = Shard::replicated({options.groups}),
                           .initializer = Initializer::kConstant,
                           .init = kInitialWidth,
                           .decay = false});
}

BlockRule Gate::rule(const SparsityPlan& plan) const {
  return {.sink_blocks = options_.sink_blocks,
          .window_blocks = options_.window_blocks,
          .kept = plan.kept};
}

GateRamp Gate::ramp(const SparsityPlan& plan, const Decision& decision) const {
  return {.strength = plan.strength, .widths = decision.widths};
}

Gate::Decision Gate::allocate_decision(StepContext& step) const {
  Arena& arena = step.arena;
  const SegmentGrid& grid = step.tokens.share;
  const int64_t groups = options_.groups;
  const int64_t slots = step.sparsity.kept + 1;
  const BlockRule rule_now = rule(step.sparsity);
  const int64_t capacity =
      !grid.firsts.empty()
          ? piece_list_capacity(grid.max_tiles(), step.tokens.sequence_length, grid.block, rule_now)
          : block_list_capacity(grid.tokens(), grid.block, rule_now);
  const Shape offsets_of_tiles{groups, grid.max_tiles() + 1};
  const Shape offsets_of_blocks{groups, grid.max_blocks() + 1};
  return {
      .selection = {.blocks =
                        arena.allocate(DType::kI32, {groups, grid.tokens(), slots}, "gate.blocks"),
                    .scores =
                        arena.allocate(DType::kF32, {groups, grid.tokens(), slots}, "gate.scores"),
                    .counts = arena.allocate(DType::kI32, {groups, grid.tokens()}, "gate.counts")},
      .lists = {.tile_offsets = arena.allocate(DType::kI32, offsets_of_tiles, "gate.tile_offsets"),
                .tile_blocks = arena.allocate(DType::kI32, {groups, capacity}, "gate.tile_blocks"),
                .tile_masks = arena.allocate(DType::kU16, {groups, capacity}, "gate.tile_masks"),
                .block_offsets =
                    arena.allocate(DType::kI32, offsets_of_blocks, "gate.block_offsets"),
                .block_tiles = arena.allocate(DType::kI32, {groups, capacity}, "gate.block_tiles"),
                .block_masks = arena.allocate(DType::kU16, {groups, capacity}, "gate.block_masks")},
      .widths = arena.allocate(DType::kF32, {groups}, "gate.widths")};
}

Gate::Saved Gate::forward(StepContext& step, ConstTensorView q0, ConstTensorView k0,
                          const Decision& decision) const {
  const SegmentGrid& grid = step.tokens.share;
  const SegmentGrid& pool = step.tokens.pool;
  const int64_t groups = options_.groups;
  const int64_t keys = grid.max_blocks() * options_.gate_keys;
  Arena& arena = step.arena;
  const TensorView kbar =
      arena.allocate(k0.dtype(), {groups, keys, options_.head_dim}, "gate.kbar");
  const TensorView alpha = arena.allocate(DType::kF32, {groups, k0.shape()[1]}, "gate.alpha");
  const TensorView qt =
      arena.allocate(DType::kF32, {groups, grid.tokens(), options_.gate_dim}, "gate.qt");
  const TensorView kt = arena.allocate(DType::kF32, {groups, keys, options_.gate_dim}, "gate.kt");
  gate_pool_forward(step.stream, {.kbar = kbar,
                                  .alpha = alpha,
                                  .k0 = k0,
                                  .r = pool_->value,
                                  .grid = pool,
                                  .gate_keys = options_.gate_keys});
  for (int64_t c = 0; c < groups; ++c) {
    matmul(step.stream, {.c = matrix(qt, c),
                         .a = matrix(q0, c),
                         .b = matrix(query_->value, c),
                         .transpose_b = true});
    matmul(step.stream, {.c = matrix(kt, c),
                         .a = matrix(ConstTensorView(kbar), c),
                         .b = matrix(key_->value, c),
                         .transpose_b = true});
  }
  // Each block was pooled by one rank; its key is 0 on the others.
  step.mesh.group(kContext).all_reduce(step.stream, kt, Reduction::kSum);
  if (options_.random) {
    replace_by_noise(step, qt, 0);
    replace_by_noise(step, kt, 1);
  }
  if (!step.recompute) {
    const Arena::Scope scratch(arena);
    const Shape rows{groups, tree_rows(grid.max_blocks()), options_.gate_dim};
    score_select(step.stream,
                 {.selection = decision.selection,
                  .qt = qt,
                  .kt = kt,
                  .grid = grid,
                  .rule = rule(step.sparsity),
                  .gate_keys = options_.gate_keys,
                  .tree = options_.tree,
                  .nodes = options_.tree.enabled() ? arena.allocate(DType::kF32, rows, "gate.nodes")
                                                   : TensorView{}});
    build_block_lists(step.stream,
                      {.lists = decision.lists, .selection = decision.selection, .grid = grid});
    softplus_forward(step.stream, {.y = decision.widths, .x = width_->value});
  }
  return {
      .q0 = q0, .k0 = k0, .kbar = kbar, .alpha = alpha, .qt = qt, .kt = kt, .decision = decision};
}

/// Other noise in every step, or two layers would learn which blocks each token sees and pass on
/// what is in them. It is wide enough that the chosen are beyond the ramp, which is 1 nat wide.
void Gate::replace_by_noise(StepContext& step, TensorView x, uint64_t part) const {
  constexpr double kDeviation = 4;  // of each factor; 16 of a score
  std::vector<float> noise(static_cast<size_t>(x.elements()));
  for (size_t i = 0; i < noise.size(); ++i) {
    const auto words = philox(noise_, 2 * step.sparsity.draw + part, i);
    noise[i] = static_cast<float>(kDeviation * normal(words[0], words[1]));
  }
  copy(step.stream, host_view(noise).reshape(x.shape()), x);
}

void Gate::backward(StepContext& step, const Saved& saved, ConstTensorView dlog_gate,
                    ConstTensorView aux_dscores, TensorView dq0, TensorView dk0) const {
  if (options_.random) {
    fill(step.stream, {.x = dq0, .value = 0});
    fill(step.stream, {.x = dk0, .value = 0});
    return;
  }
  Arena& arena = step.arena;
  const Arena::Scope scratch(arena);
  const TensorView dscores =
      arena.allocate(DType::kF32, saved.decision.selection.scores.shape(), "gate.dscores");
  const TensorView dwidths = arena.allocate(DType::kF32, {options_.groups}, "gate.dwidths");
  fill(step.stream, {.x = dscores, .value = 0});
  fill(step.stream, {.x = dwidths, .value = 0});
  ramp_backward(step.stream, {.dscores = dscores,
                              .dwidths = dwidths,
                              .dlog_gate = dlog_gate,
                              .selection = saved.decision.selection,
                              .ramp = ramp(step.sparsity, saved.decision)});
  softplus_backward(step.stream, {.dx = width_->grad, .dy = dwidths, .x = width_->value});
  if (options_.trunk_gradient && step.sparsity.strength > 0) {
    backward_trunk(step, saved, dscores, dq0, dk0);
  } else {
    fill(step.stream, {.x = dq0, .value = 0});
    fill(step.stream, {.x = dk0, .value = 0});
  }
  add(step.stream, {.y = dscores, .a = dscores, .b = aux_dscores});
  backward_parameters(step, saved, dscores);
}

Gate::KeyGradients Gate::backward_scores(StepContext& step, const Saved& saved,
                                         ConstTensorView dscores) const {
  Arena& arena = step.arena;
  const DType dtype = saved.q0.dtype();
  const KeyGradients out{.dqt = arena.allocate(dtype, saved.qt.shape(), "gate.dqt"),
                         .dkt = arena.allocate(dtype, saved.kt.shape(), "gate.dkt"),
                         .dkbar = arena.allocate(DType::kF32, saved.kbar.shape(), "gate.dkbar")};
  const Arena::Scope scratch(arena);
  const TensorView dqt = arena.allocate(DType::kF32, saved.qt.shape(), "gate.dqt32");
  const TensorView dkt = arena.allocate(DType::kF32, saved.kt.shape(), "gate.dkt32");
  score_backward(step.stream, {.dqt = dqt,
                               .dkt = dkt,
                               .dscores = dscores,
                               .selection = saved.decision.selection,
                               .qt = saved.qt,
                               .kt = saved.kt,
                               .grid = step.tokens.share,
                               .gate_keys = options_.gate_keys});
  step.mesh.group(kContext).all_reduce(step.stream, dkt, Reduction::kSum);
  cast(step.stream, {.y = out.dqt, .x = dqt});
  cast(step.stream, {.y = out.dkt, .x = dkt});
  for (int64_t c = 0; c < options_.groups; ++c) {
    matmul(step.stream,
           {.c = matrix(out.dkbar, c), .a = matrix(out.dkt, c), .b = matrix(key_->value, c)});
  }
  return out;
}

void Gate::backward_pool(StepContext& step, const Saved& saved, ConstTensorView dkbar,
                         TensorView dk0, TensorView dr) const {
  gate_pool_backward(step.stream, {.dk0 = dk0,
                                   .dr = dr,
                                   .dkbar = dkbar,
                                   .kbar = saved.kbar,
                                   .alpha = saved.alpha,
                                   .k0 = saved.k0,
                                   .r = pool_->value,
                                   .grid = step.tokens.pool,
                                   .gate_keys = options_.gate_keys});
}

void Gate::backward_parameters(StepContext& step, const Saved& saved,
                               ConstTensorView dscores) const {
  const Arena::Scope scratch(step.arena);
  const KeyGradients d = backward_scores(step, saved, dscores);
  for (int64_t c = 0; c < options_.groups; ++c) {
    matmul(step.stream, {.c = matrix(query_->grad, c),
                         .a = matrix(d.dqt, c),
                         .b = matrix(saved.q0, c),
                         .transpose_a = true,
                         .accumulate = true});
    matmul(step.stream, {.c = matrix(key_->grad, c),
                         .a = matrix(d.dkt, c),
                         .b = matrix(saved.kbar, c),
                         .transpose_a = true,
                         .accumulate = true});
  }
  const TensorView unused = step.arena.allocate(DType::kF32, saved.k0.shape(), "gate.unused_dk0");
  backward_pool(step, saved, d.dkbar, unused, pool_->grad);
}

void Gate::backward_trunk(StepContext& step, const Saved& saved, ConstTensorView dscores,
                          TensorView dq0, TensorView dk0) const {
  const Arena::Scope scratch(step.arena);
  const KeyGradients d = backward_scores(step, saved, dscores);
  for (int64_t c = 0; c < options_.groups; ++c) {
    matmul(step.stream,
           {.c = matrix(dq0, c), .a = matrix(d.dqt, c), .b = matrix(query_->value, c)});
  }
  const TensorView unused =
      step.arena.allocate(DType::kF32, pool_->value.shape(), "gate.unused_dr");
  fill(step.stream, {.x = unused, .value = 0});
  backward_pool(step, saved, d.dkbar, dk0, unused);
}

}  // namespace tessera
