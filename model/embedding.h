#pragma once

#include "model/parameter.h"
#include "model/rank_place.h"
#include "model/step_context.h"

namespace tessera {

/// Token ids to the residual stream: the rows of a table and, when asked for, those of the tokens
/// before (kernels/token_smear.h). Tensor ranks share the table by entries.
class Embedding {
 public:
  struct Options {
    int64_t vocabulary;
    int64_t hidden;
    int64_t smear_tokens;  ///< tokens before each that are taken up
    DType dtype;
    double init_std;  ///< of the table
  };

  Embedding(ParameterStore& store, const Options& options, const RankPlace& place);

  /// x [tokens of this rank's share, hidden] of step.tokens.
  [[nodiscard]] TensorView forward(StepContext& step) const;
  /// Adds to the parameters' gradients what dx, of the same shape as x, makes of them.
  void backward(StepContext& step, ConstTensorView dx) const;

  /// The table, [entries of this rank, hidden].
  Parameter& weight() const { return *weight_; }
  int64_t smear_tokens() const { return smear_ == nullptr ? 0 : smear_->shard.whole[0]; }

 private:
  Parameter* weight_;
  Parameter* smear_ = nullptr;  ///< [smear tokens, hidden]; null without
  int64_t vocabulary_;
};

}  // namespace tessera
