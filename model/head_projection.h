#pragma once

#include <optional>
#include <string>

#include "model/linear.h"
#include "model/norm.h"
#include "model/rank_place.h"

namespace tessera {

/// The heads of one kind (global or local) of an attention layer, and those that one rank computes.
/// Heads of a layer are numbered with the global groups first.
struct HeadShare {
  int64_t group_heads = 1;  ///< g, query heads per KV group
  int64_t kind_group = 0;   ///< first KV group of the kind, in the layer
  int64_t kind_groups = 0;  ///< KV groups of the kind
  int64_t first_head = 0;   ///< first query head here, counted from the first of the kind
  int64_t heads = 0;        ///< query heads here
  bool split = false;       ///< the kind's heads are shared out among tensor ranks
  int parts = 1;            ///< among so many

  /// KV groups that the heads here belong to, counted from the first of the kind.
  int64_t first_group() const { return first_head / group_heads; }
  int64_t groups() const {
    return (first_head + heads + group_heads - 1) / group_heads - first_group();
  }
  /// Query heads of the first of these groups that other ranks have.
  int64_t heads_before() const { return first_head % group_heads; }
  /// Whether every group belongs to one rank, so that its keys need one rank's weights only.
  bool whole_groups() const { return !split || kind_groups % parts == 0; }
};

/// All heads of a kind.
HeadShare all_heads(int64_t kind_group, int64_t kind_groups, int64_t group_heads);
/// An even and contiguous share of the kind's query heads, of which there must be at least `parts`.
/// It may begin and end inside a group.
HeadShare split_heads(int64_t kind_group, int64_t kind_groups, int64_t group_heads, int part,
                      int parts);

/// What leads from the residual stream to the heads of one kind and back: query, key and value
/// matrices, norms and rotation before the attention, output gate and output matrix after it.
class HeadProjection {
 public:
  struct Options {
    int64_t hidden;
    int64_t heads;     ///< query heads of the whole layer
    int64_t kv_heads;  ///< KV groups of the whole layer
    int64_t head_dim;
    float rope_base;
    bool output_gate;
    bool sink_logit;
    DType dtype;
    double init_std;
    double out_init_std;
  };
  /// RMSNorms of each query and key head, shared by both kinds; nullptr: none.
  struct Norms {
    const Norm* query;
    const Norm* key;
  };

  /// Declares this rank's parts of the layer's parameters; `name` is the layer's prefix.
  HeadProjection(ParameterStore& store, const std::string& name, const Options& options,
                 const HeadShare& share);

  struct Saved {
    ConstTensorView x;     ///< [tokens, hidden]
    TensorView q;          ///< [tokens, heads, d]; with RoPE after rotate()
    TensorView k;          ///< [tokens, groups, d]; likewise
    TensorView v;          ///< [tokens, groups, d]
    ConstTensorView gate;  ///< [tokens, heads * d], output gate before the sigmoid; or empty
    std::optional<Norm::Saved> query_norm;
    std::optional<Norm::Saved> key_norm;
  };
  struct Gradients {
    TensorView dq;  ///< [tokens, heads, d]
    TensorView dk;  ///< [tokens, groups, d]
    TensorView dv;  ///< [tokens, groups, d]
  };

  /// Allocates in the arena. q and k are without RoPE.
  [[nodiscard]] Saved project(StepContext& step, ConstTensorView x, const Norms& norms) const;
  /// Applies RoPE to q and k.
  void rotate(StepContext& step, const Saved& saved, ConstTensorView positions) const;
  /// y [tokens, hidden] = W_out (o * sigmoid(gate)), or added to with `accumulate`.
  /// o: [tokens, heads, d].
  void output(StepContext& step, const Saved& saved, ConstTensorView o, TensorView y,
              bool accumulate) const;

  /// d_o [tokens, heads, d] is overwritten. With an output gate its part of dx is written, or added
  /// with `accumulate`. Returns whether dx holds anything now.
  bool backward_output(StepContext& step, const Saved& saved, ConstTensorView o, ConstTensorView dy,
                       TensorView d_o, TensorView dx, bool accumulate) const;
  /// `d` is of q and k without RoPE, and is used up. dx is written, or added to with `accumulate`.
  void backward_project(StepContext& step, const Saved& saved, const Norms& norms,
                        const Gradients& d, TensorView dx, bool accumulate) const;
  /// Takes RoPE out of gradients: dq and dk become those of q and k before rotate().
  void rotate_back(StepContext& step, const Gradients& d, ConstTensorView positions) const;

  const HeadShare& share() const { return share_; }
  int64_t head_dim() const { return options_.head_dim; }
  ConstTensorView sink_logits() const;
  TensorView sink_logit_gradients() const;

 private:
  Parameter rows(const std::string& name, int64_t heads, int64_t first, int64_t count) const;
  Linear key_or_value(ParameterStore& store, const std::string& name) const;
  Parameter out_columns(const std::string& name) const;

  Options options_;
  HeadShare share_;
  Linear query_;
  Linear key_;
  Linear value_;
  Linear out_;
  std::optional<Linear> output_gate_;
  Parameter* sink_logit_ = nullptr;
};

}  // namespace tessera
