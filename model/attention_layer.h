#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/gate.h"
#include "model/head_projection.h"
#include "model/kv_cache.h"

namespace tessera {

/// Dynamic Gated Sparse Attention: a few global KV groups attend to blocks that their gate
/// chooses, the local groups to a sliding window; all to everything while the gate rests.
///
/// Local heads are shared out among the tensor ranks; each works on all tokens of its sequence
/// rank, and fetches keys of the window from the ranks before. Global groups are computed by all
/// ranks that work on a sequence, each for its own tokens, with the keys of all; their parameters
/// are the same on all ranks.
class AttentionLayer {
 public:
  struct Options {
    HeadProjection::Options heads;
    int64_t global_groups;  ///< the first so many KV groups
    int64_t sink_tokens;    ///< of local groups
    float norm_epsilon;
    bool qk_norm;
    Gate::Options gate;
  };

  AttentionLayer(ParameterStore& store, const std::string& name, const Options& options,
                 const RankPlace& place);

  /// Empty while the gate rests.
  using Decision = std::optional<Gate::Decision>;
  /// Outputs of one kind of heads that attend in two ways (GroupMix).
  struct Mixed {
    TensorView full;        ///< [tokens, heads, d]: as the plan says
    TensorView windowed;    ///< [tokens, heads, d]: to the window
    TensorView window_lse;  ///< [heads, tokens], f32
  };
  /// One kind of heads.
  struct Heads {
    HeadProjection::Saved in;
    ConstTensorView keys;    ///< [key rows, groups, d], with RoPE: own and fetched ones
    ConstTensorView values;  ///< [key rows, groups, d]
    TensorView o;            ///< [tokens, heads, d]
    TensorView lse;          ///< [heads, tokens], f32
    std::optional<Mixed> mixed = {};
  };
  struct Saved {
    std::optional<Heads> global;
    std::optional<Heads> local;
    std::optional<Gate::Saved> selector;
    ConstTensorView aux_dscores;  ///< gradient of the gate's own losses; empty while it rests
  };

  Decision allocate_decision(StepContext& step) const;
  /// x and y [tokens, hidden]: this rank's share; y is overwritten. Fills `decision`, or reuses it
  /// when step.recompute.
  [[nodiscard]] Saved forward(StepContext& step, ConstTensorView x, const Decision& decision,
                              TensorView y) const;
  /// dx [tokens, hidden] is overwritten.
  void backward(StepContext& step, const Saved& saved, ConstTensorView dy, TensorView dx) const;

  /// An empty cache for sequences under `plan`, in pages of `block` tokens.
  AttentionCache make_cache(Stream& stream, const SparsityPlan& plan, int64_t block,
                            const CacheSize& size) const;
  /// The forward of the new tokens of a plan: x and y are [sequences, hidden]. Adds them to the
  /// cache. For a rank that has all heads.
  void decode(StepContext& step, ConstTensorView x, const DecodePlan& plan, AttentionCache& cache,
              TensorView y) const;
  /// After forward() of the tokens of a prompt, which are one sequence: leaves in the cache what
  /// decode() of each of them in turn would have left there.
  void remember(StepContext& step, const Saved& saved, const PrefillPlan& plan,
                AttentionCache& cache) const;

 private:
  struct SpanLists {
    ConstTensorView spans;
    ConstTensorView log_gates;
    ConstTensorView counts;
  };
  /// Gradients of the rows that `Heads` has, before keys go home.
  struct HeadGradients {
    TensorView d_o;      ///< [tokens, heads, d]
    TensorView delta;    ///< [heads, tokens], f32
    TensorView dq;       ///< [tokens, heads, d]
    TensorView dkeys;    ///< [key rows, groups, d]
    TensorView dvalues;  ///< [key rows, groups, d]
  };

  HeadProjection::Norms norms() const;
  std::span<const int32_t> groups_of(const HeadProjection& kind) const;
  void select(StepContext& step, Saved& saved, const Gate::Decision& decision) const;
  void attend_dense(StepContext& step, const HeadProjection& kind, const Heads& heads,
                    const SegmentGrid& grid) const;
  void attend_mixed(StepContext& step, const HeadProjection& kind, const Heads& heads,
                    const SegmentGrid& grid) const;
  void attend_global(StepContext& step, Saved& saved) const;
  void attend_chosen(StepContext& step, Saved& saved) const;
  void measure(StepContext& step, const Saved& saved, ConstTensorView block_lse) const;
  void measure_lists(StepContext& step, const Gate::Decision& decision, TensorView figures) const;
  void forward_local(StepContext& step, ConstTensorView x, Saved& saved) const;

  HeadGradients allocate_gradients(StepContext& step, const Heads& heads) const;
  bool backward_local(StepContext& step, const Heads& heads, ConstTensorView dy,
                      TensorView dx) const;
  void backward_global(StepContext& step, const Saved& saved, ConstTensorView dy, TensorView dx,
                       bool accumulate) const;
  void backward_dense(StepContext& step, const HeadProjection& kind, const Heads& heads,
                      const SegmentGrid& grid, const HeadGradients& d) const;
  void backward_mixed(StepContext& step, const HeadProjection& kind, const Heads& heads,
                      const SegmentGrid& grid, const HeadGradients& d) const;
  void backward_chosen(StepContext& step, const Saved& saved, const HeadGradients& d,
                       TensorView dlog_gate) const;
  void backward_gate(StepContext& step, const Saved& saved, ConstTensorView dlog_gate,
                     const HeadProjection::Gradients& d) const;
  HeadProjection::Gradients bring_home(StepContext& step, const Heads& heads,
                                       const HeadGradients& d, const RowExchange& rows,
                                       Communicator& ranks) const;

  void decode_local(StepContext& step, const HeadProjection::Saved& now, const DecodePlan& plan,
                    AttentionCache& cache, TensorView o) const;
  void decode_global(StepContext& step, const HeadProjection::Saved& now, ConstTensorView q0,
                     ConstTensorView k0, const DecodePlan& plan, AttentionCache& cache,
                     TensorView o) const;
  void attend_spans(StepContext& step, const HeadProjection& kind, ConstTensorView q,
                    const SpanLists& lists, std::span<const int32_t> groups, ConstTensorView k,
                    ConstTensorView v, TensorView o) const;

  Options options_;
  float scale_;
  std::optional<Norm> query_norm_;
  std::optional<Norm> key_norm_;
  std::optional<HeadProjection> global_;
  std::optional<HeadProjection> local_;
  std::vector<int32_t> global_groups_;  ///< 0, 1, ...: of the tensors of this rank
  std::vector<int32_t> local_groups_;
  std::optional<Gate> gate_;
};

}  // namespace tessera
