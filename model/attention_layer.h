#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/gate.h"
#include "model/kv_cache.h"
#include "model/linear.h"
#include "model/norm.h"

namespace tessera {

/// Dynamic Gated Sparse Attention: a few global KV groups attend to blocks that their gate
/// chooses, the local groups to a sliding window; all to everything while the gate rests.
class AttentionLayer {
 public:
  struct Options {
    int64_t hidden;
    int64_t heads;
    int64_t kv_heads;
    int64_t head_dim;
    int64_t global_groups;  ///< the first so many KV groups
    int64_t sink_tokens;
    float rope_base;
    float norm_epsilon;
    bool qk_norm;
    bool output_gate;
    bool sink_logit;
    Gate::Options gate;
    DType dtype;
    double init_std;
    double out_init_std;
  };

  AttentionLayer(ParameterStore& store, const std::string& name, const Options& options);

  /// Empty while the gate rests.
  using Decision = std::optional<Gate::Decision>;
  struct Saved {
    ConstTensorView x;     ///< [tokens, hidden]
    ConstTensorView q;     ///< [tokens, heads, d], with RoPE
    ConstTensorView k;     ///< [tokens, kv_heads, d], with RoPE
    ConstTensorView v;     ///< [tokens, kv_heads, d]
    ConstTensorView o;     ///< [tokens, heads, d]
    ConstTensorView lse;   ///< [heads, tokens], f32
    ConstTensorView gate;  ///< [tokens, heads * d], output gate before the sigmoid; or empty
    std::optional<Norm::Saved> query_norm;
    std::optional<Norm::Saved> key_norm;
    std::optional<Gate::Saved> selector;
    ConstTensorView aux_dscores;  ///< gradient of the gate's own losses; empty while it rests
  };

  Decision allocate_decision(StepContext& step) const;
  /// y [tokens, hidden] is overwritten. Fills `decision`, or reuses it when step.recompute.
  [[nodiscard]] Saved forward(StepContext& step, ConstTensorView x, const Decision& decision,
                              TensorView y) const;
  /// dx [tokens, hidden] is overwritten.
  void backward(StepContext& step, const Saved& saved, ConstTensorView dy, TensorView dx) const;

  /// An empty cache for one sequence of at most `max_tokens` tokens under `plan`, in pages
  /// of `block` tokens.
  AttentionCache make_cache(Device device, const SparsityPlan& plan, int64_t block,
                            int64_t max_tokens) const;
  /// The forward of one new token at `position`: x and y are [1, hidden]. Adds it to the cache.
  void decode(StepContext& step, ConstTensorView x, int64_t position, AttentionCache& cache,
              TensorView y) const;

 private:
  struct Unroped {
    ConstTensorView q0;  ///< [global groups, tokens, g * d]
    ConstTensorView k0;  ///< [global groups, tokens, d]
  };
  struct SpanLists {
    ConstTensorView spans;
    ConstTensorView log_gates;
    ConstTensorView counts;
  };
  Unroped project_heads(StepContext& step, Saved& saved, bool gated) const;
  void decode_local(StepContext& step, const Saved& now, int64_t position, AttentionCache& cache,
                    TensorView o) const;
  void decode_global(StepContext& step, const Saved& now, const Unroped& unroped_heads,
                     int64_t position, AttentionCache& cache, TensorView o) const;
  SpanLists same_spans(StepContext& step, std::span<const int32_t> groups,
                       std::span<const CacheSpan> spans) const;
  void attend_spans(StepContext& step, const Saved& now, const SpanLists& lists,
                    std::span<const int32_t> groups, ConstTensorView k, ConstTensorView v,
                    TensorView o) const;
  struct HeadGradients {
    TensorView dq;  ///< [tokens, heads, d]
    TensorView dk;  ///< [tokens, kv_heads, d]
    TensorView dv;  ///< [tokens, kv_heads, d]
  };
  void attend(StepContext& step, Saved& saved, TensorView o, TensorView lse) const;
  void attend_global(StepContext& step, Saved& saved, TensorView o, TensorView lse) const;
  void backward_attend(StepContext& step, const Saved& saved, ConstTensorView d_o,
                       const HeadGradients& d) const;
  void backward_global(StepContext& step, const Saved& saved, ConstTensorView d_o,
                       const HeadGradients& d, TensorView delta, TensorView dlog_gate) const;
  void backward_project(StepContext& step, const Saved& saved, const HeadGradients& d,
                        TensorView dx) const;
  TensorView unroped(StepContext& step, ConstTensorView x, int64_t group_heads) const;
  ConstTensorView sink_logits() const;
  TensorView sink_logit_gradients() const;

  Options options_;
  std::vector<int32_t> global_;
  std::vector<int32_t> local_;
  std::vector<int32_t> all_;
  float scale_;
  Linear query_;
  Linear key_;
  Linear value_;
  Linear out_;
  std::optional<Linear> output_gate_;
  std::optional<Norm> query_norm_;
  std::optional<Norm> key_norm_;
  std::optional<Gate> gate_;
  Parameter* sink_logit_ = nullptr;
};

}  // namespace tessera
