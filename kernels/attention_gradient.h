#pragma once

#include <span>

#include "kernels/attention_run.h"
#include "kernels/core/tensor_view.h"

namespace tessera::cpu {

/// What the tasks of one backward call share, besides AttentionOperands.
template <class T>
struct GradientOperands {
  HeadRows<const T> d_o;
  const float* lse;    ///< [heads, tokens]
  const float* delta;  ///< [heads, tokens]
};

/// dq, and the gradient of the log gates, for the tokens of a piece and some heads of one group:
///   p_ij = exp(s_ij - L_i),   ds_ij = p_ij (d_o_i . v_j - delta_i),   dq_i = scale sum_j ds_ij
///   k_j.
/// Give it the panels in ascending order, then finish.
template <class T>
class QueryGradientRun {
 public:
  struct Output {
    HeadRows<T> dq;
    float* dlog_gate = nullptr;  ///< [tokens, kept] of the group, added to; or nullptr
    int64_t kept = 0;
  };

  QueryGradientRun(const AttentionOperands<T>& in, const GradientOperands<T>& gradient,
                   const Output& out, const Piece& piece, int64_t first_head, int64_t heads,
                   Scratch& scratch);
  void attend(const KeyPanel& panel, const Attendees& tokens);
  void finish();

 private:
  void absorb(const RowBatch& batch);
  int64_t state(const RowBatch& batch, size_t row) const {
    return (batch.position[row] - piece_.first) * heads_ + batch.head[row];
  }

  const AttentionOperands<T>& in_;
  const GradientOperands<T>& gradient_;
  const Output& out_;
  Piece piece_;
  int64_t first_head_;
  int64_t heads_;
  int64_t width_;        // d rounded up to 16
  Factor<T>* q_;         // [rows, d]
  Factor<T>* d_o_;       // [rows, d]
  float* dq_;            // [rows, width]
  Factor<T>* keys_;      // [d, 64]
  Factor<T>* values_;    // [d, 64]
  Factor<T>* key_rows_;  // [64, width]
  float* scores_;        // [16, 64]
  float* dweights_;      // [16, 64]
  Factor<T>* dscores_;   // [16, 64]
};

/// dk and dv of a panel, summed over all heads of its group in q: give it the tokens in ascending
/// order, in as many portions as you like, then finish.
template <class T>
class KeyGradientPanel {
 public:
  KeyGradientPanel(const AttentionOperands<T>& in, const GradientOperands<T>& gradient,
                   const KeyPanel& panel, Scratch& scratch);
  void attend(const Attendees& tokens);
  void finish(const HeadRows<T>& dk, const HeadRows<T>& dv);

 private:
  void absorb(const RowBatch& batch);
  void weigh(const RowBatch& batch);

  const AttentionOperands<T>& in_;
  const GradientOperands<T>& gradient_;
  KeyPanel panel_;
  int64_t first_head_;   // of q
  int64_t heads_;        // of the group, in q
  int64_t width_;        // d rounded up to 16
  Factor<T>* keys_;      // [d, 64]
  Factor<T>* values_;    // [d, 64]
  float* dk_;            // [64, width]
  float* dv_;            // [64, width]
  float* scores_;        // [64 rows, 64]
  float* dweights_;      // [64 rows, 64]
  Factor<T>* weights_;   // [64 rows, 64]: p, pairs of rows
  Factor<T>* dscores_;   // [64 rows, 64]: ds, pairs of rows
  Factor<T>* q_rows_;    // [64 rows, width]
  Factor<T>* d_o_rows_;  // [64 rows, width]
};

/// delta[h, i] = d_o_i . o_i for the heads of `groups`, and where sink logits are given
///   dsink_logits[h] += - sum_i exp(a_h - L_i) delta_i.
struct AttentionDelta {
  TensorView delta;
  TensorView dsink_logits;
  ConstTensorView d_o;
  ConstTensorView o;
  ConstTensorView lse;
  ConstTensorView sink_logits;
  std::span<const int32_t> groups;
  HeadMap map;
};
void attention_delta(ThreadPool& threads, const AttentionDelta& a);

}  // namespace tessera::cpu
