#pragma once

#include <string>

#include "kernels/block_selection.h"
#include "kernels/sparse_attention.h"
#include "model/decode_plan.h"
#include "model/kv_cache.h"
#include "model/parameter.h"
#include "model/step_context.h"

namespace tessera {

/// The gate of a layer's global groups: which key blocks each token attends to.
/// Gate queries qt = W_q q0 (all heads of the group), gate keys kt = W_k kbar (pooled keys),
/// scores z = qt . kt, the best k blocks, and the ramp that damps those near the threshold.
/// Of ranks that share a sequence each chooses for its own tokens, and pools the blocks whose last
/// token it has; the gate keys of all blocks are summed over the ranks, and so are their gradients.
class Gate {
 public:
  struct Options {
    int64_t groups;       ///< global groups
    int64_t group_heads;  ///< g, query heads per group
    int64_t head_dim;
    int64_t gate_dim;
    int64_t gate_keys;  ///< per block
    int64_t sink_blocks;
    int64_t window_blocks;
    TreeSearch tree = {};  ///< whether, and how, blocks are chosen through a tree
    bool random = false;   ///< blocks are chosen by scores of noise, and nothing is learned
    bool trunk_gradient;   ///< LM gradient through the gate reaches the trunk's queries and keys
    DType dtype;
  };

  Gate(ParameterStore& store, const std::string& name, const Options& options);

  /// What was chosen: made once per micro-batch and reused by recomputation and backward.
  struct Decision {
    BlockSelection selection;
    BlockLists lists;
    TensorView widths;  ///< [groups], f32: ramp widths, softplus of their parameter
  };
  struct Saved {
    ConstTensorView q0;     ///< [groups, tokens, g * d], queries without RoPE
    ConstTensorView k0;     ///< [groups, pool rows, d], keys without RoPE
    ConstTensorView kbar;   ///< [groups, max_blocks * gate_keys, d]; 0 where others pool
    ConstTensorView alpha;  ///< [groups, pool rows], f32
    ConstTensorView qt;     ///< [groups, tokens, gate_dim], f32
    ConstTensorView kt;     ///< [groups, max_blocks * gate_keys, gate_dim], f32: of all blocks
    Decision decision;
  };

  BlockRule rule(const SparsityPlan& plan) const;
  GateRamp ramp(const SparsityPlan& plan, const Decision& decision) const;

  Decision allocate_decision(StepContext& step) const;
  [[nodiscard]] Saved forward(StepContext& step, ConstTensorView q0, ConstTensorView k0,
                              const Decision& decision) const;
  /// `dlog_gate` from the attention, `aux_dscores` from the gate's losses. dq0 and dk0, both f32 of
  /// the shapes of q0 and k0, are overwritten; the losses do not reach them, only the LM gradient.
  void backward(StepContext& step, const Saved& saved, ConstTensorView dlog_gate,
                ConstTensorView aux_dscores, TensorView dq0, TensorView dk0) const;

  /// What one new token of each sequence attends to: see DecodeSelect.
  struct Choice {
    TensorView spans;      ///< [groups, sequences, most, 2], i32
    TensorView log_gates;  ///< [groups, sequences, most], f32
    TensorView counts;     ///< [groups, sequences], i32
  };
  /// Decoding: chooses for the step's tokens, whose queries without RoPE are q0
  /// [groups, sequences, g * d]. Allocates in the arena.
  Choice choose(StepContext& step, ConstTensorView q0, const GateCache& cache) const;
  /// Decoding, after choose(): adds the tokens' keys k0 [groups, sequences, d] to their pages.
  void remember(StepContext& step, ConstTensorView k0, const DecodePlan& plan,
                const GateCache& cache) const;
  /// After forward() of a prompt: keeps the gate keys of its pages.
  void remember(StepContext& step, const Saved& saved, const PrefillPlan& plan,
                const GateCache& cache) const;

 private:
  struct KeyGradients {
    TensorView dqt;    ///< shape of qt, dtype of the model
    TensorView dkt;    ///< shape of kt, dtype of the model
    TensorView dkbar;  ///< shape of kbar, f32
  };
  void make_keys(StepContext& step, int64_t group, ConstTensorView pooled, TensorView keys) const;
  void insert(StepContext& step, ConstTensorView places, ConstTensorView pages,
              const GateCache& cache) const;
  KeyGradients backward_scores(StepContext& step, const Saved& saved,
                               ConstTensorView dscores) const;
  void backward_pool(StepContext& step, const Saved& saved, ConstTensorView dkbar, TensorView dk0,
                     TensorView dr) const;
  void replace_by_noise(StepContext& step, TensorView x, uint64_t part) const;
  void backward_parameters(StepContext& step, const Saved& saved, ConstTensorView dscores) const;
  void backward_trunk(StepContext& step, const Saved& saved, ConstTensorView dscores,
                      TensorView dq0, TensorView dk0) const;

  Options options_;
  uint64_t noise_;    ///< key of the random numbers, where blocks are chosen by them
  Parameter* query_;  ///< [groups, gate_dim, g * d]
  Parameter* key_;    ///< [groups, gate_dim, d]
  Parameter* pool_;   ///< r, [groups, d], f32
  Parameter* width_;  ///< [groups], f32; the width is its softplus
};

}  // namespace tessera
