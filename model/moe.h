#pragma once

#include <optional>
#include <string>

#include "kernels/route.h"
#include "model/expert_exchange.h"
#include "model/mlp.h"

namespace tessera {

/// Mixture of experts: y_t = sum over the chosen e of W_down[e] (w_te silu(g) * u), plus a shared
/// expert. The combine weight goes in before W_down, so expert outputs need not be kept.
/// Each rank routes its own share of the tokens; experts are shared out along the expert axis, and
/// the shared expert is a dense layer that computes while rows travel.
class Moe {
 public:
  /// Over which tokens the balance loss counts.
  enum class BalanceScope : uint8_t {
    kSequence,
    kMicroBatch,
    kGlobalBatch,  ///< the micro-batches that all data ranks run at the same time
  };
  struct Options {
    int64_t hidden;
    int64_t intermediate;  ///< of one expert
    int64_t experts;
    int64_t experts_per_token;
    int64_t shared_experts;  ///< 0: none; else one expert of this many widths
    RouterMode mode;
    float router_scale;
    double balance_loss;
    double z_loss;
    double capacity_factor;  ///< 0: no token is dropped; else see ExpertExchange
    BalanceScope balance_scope;
    bool balance_bias;  ///< kSigmoid with a loss-free bias
    DType dtype;
    double init_std;
    double out_init_std;
  };

  /// `index` counts the MoE layers of the model: the row of StepSums::expert_counts.
  Moe(ParameterStore& store, const std::string& name, const Options& options,
      const RankPlace& place, int64_t index);

  /// Who goes where: made once per micro-batch and reused by recomputation and backward.
  struct Decision {
    TensorView experts;    ///< [tokens, k], i32
    TensorView weights;    ///< [tokens, k], f32
    TensorView counts;     ///< [scopes, experts], f32
    TensorView row_of;     ///< [tokens, k], i32; -1: dropped
    TensorView source_of;  ///< [tokens * k], i32; pairs that are not dropped come first
    TensorView offsets;    ///< [experts + 1], i32
    int64_t pairs = 0;     ///< that are not dropped; on a plan, the most there can be
    ExpertExchange::Decision exchange;
  };
  struct Saved {
    ConstTensorView x;            ///< [tokens, hidden]
    ConstTensorView logits;       ///< [tokens, experts], f32
    ConstTensorView aux_dlogits;  ///< [tokens, experts], f32: gradient of the router's own losses
    ConstTensorView received;     ///< [capacity, hidden]: rows of the experts here, as they came;
                                  ///< empty when all experts are here
    ConstTensorView row_weight;   ///< [rows here], f32
    ConstTensorView gate_up;      ///< [rows here, 2 * intermediate]
    Decision decision;
    std::optional<Mlp::Saved> shared;
  };

  Decision allocate_decision(StepContext& step) const;
  /// y [tokens, hidden] is overwritten. Fills `decision`, or reuses it when step.recompute.
  [[nodiscard]] Saved forward(StepContext& step, ConstTensorView x, Decision& decision,
                              TensorView y) const;
  /// dx [tokens, hidden] is overwritten.
  void backward(StepContext& step, const Saved& saved, ConstTensorView dy, TensorView dx) const;

  /// Once per optimizer step, with the counts of the whole global batch, [experts] f32.
  void update_balance_bias(Stream& stream, ConstTensorView counts, float rate) const;
  int64_t index() const { return index_; }

 private:
  void route(StepContext& step, Decision& decision, ConstTensorView logits) const;
  int64_t count_pairs(StepContext& step, Decision& decision) const;
  void add_losses(StepContext& step, const Decision& decision, ConstTensorView logits,
                  TensorView aux_dlogits) const;
  void forward_router(StepContext& step, ConstTensorView x, Decision& decision, TensorView logits,
                      TensorView aux_dlogits) const;
  static void multiply(StepContext& step, const Parameter& weight, ConstTensorView x,
                       ConstTensorView offsets, TensorView y);
  void forward_experts(StepContext& step, const Saved& saved, TensorView row_weight,
                       TensorView gate_up, TensorView y) const;
  void receive_weights(StepContext& step, const Decision& decision, TensorView row_weight) const;
  void backward_router(StepContext& step, const Saved& saved, ConstTensorView dweights,
                       TensorView dx) const;
  void backward_experts(StepContext& step, const Saved& saved, ConstTensorView dy, TensorView dxp,
                        TensorView drow_weight) const;
  ConstTensorView offsets_here(const Decision& decision) const;
  void own_rows(StepContext& step, const Decision& decision, ConstTensorView x,
                TensorView rows) const;
  void rows_of_tokens(StepContext& step, const Decision& decision, ConstTensorView x,
                      TensorView rows) const;
  int64_t rows_here(const Decision& decision) const;
  int64_t most_rows(int64_t tokens) const;
  static ConstTensorView sources(const Decision& decision);

  Options options_;
  ExpertExchange exchange_;
  int64_t index_;
  Linear router_;
  Parameter* bias_ = nullptr;
  Parameter* gate_up_;  ///< [experts here, 2 * intermediate, hidden]
  Parameter* down_;     ///< [experts here, hidden, intermediate]
  std::optional<Mlp> shared_;
};

}  // namespace tessera
