#pragma once

#include "kernels/core/tensor_view.h"

namespace tessera {

/// How experts are chosen and weighted. l: logits of a token, S: its chosen experts.
enum class RouterMode : uint8_t {
  kSoftmaxTopK,        ///< top-k of l; w = softmax over S of l (Mixtral)
  kSoftmax,            ///< top-k of p = softmax(l); w = p
  kSoftmaxNormalized,  ///< top-k of p; w = p / sum_S p (Qwen3-MoE)
  kSigmoid,            ///< top-k of s + bias, s = sigmoid(l); w = scale * s / (sum_S s + 1e-20)
};

/// Experts of one router, at most: a token's scores stay on the stack.
inline constexpr int64_t kMaxExperts = 1024;

// Tokens are counted in scopes, which follow each other: scope s is tokens
// [scope_starts[s], scope_starts[s + 1]), where scope_starts [scopes + 1], i32, ascends from 0 to
// the number of tokens; on the CPU anything else throws. Scopes may be empty. Without scope_starts
// they have equally many tokens.

/// Chooses k <= experts of at most kMaxExperts for each token. Ties: lowest expert index. The
/// softmax modes compare l, in whose order p is, so that rounding of p makes no ties.
/// A token with a NaN logit still gets k distinct experts (NaN counts as -inf), and weights of NaN.
/// With k = 1, weights other than those of kSoftmax are constant: the router would not learn.
struct RouteForward {
  TensorView experts;      ///< out [tokens, k], i32, best first
  TensorView weights;      ///< out [tokens, k], f32: combine weights
  TensorView counts;       ///< out [scopes, experts], f32: tokens of each scope that chose expert e
  ConstTensorView logits;  ///< [tokens, experts], f32
  RouterMode mode;
  float scale = 1;                    ///< kSigmoid only
  ConstTensorView bias = {};          ///< [experts], f32; kSigmoid only; no gradient
  ConstTensorView scope_starts = {};  ///< of the tokens that are here; optional
};
void route_forward(Stream& stream, const RouteForward& a);

/// Gradient through the combine weights. `experts` is as chosen in forward: never chosen again.
/// Experts out of range throw on the CPU; a GPU leaves them out.
struct RouteBackward {
  TensorView dlogits;        ///< out [tokens, experts], f32; overwritten
  ConstTensorView dweights;  ///< [tokens, k], f32
  ConstTensorView logits;    ///< as in forward
  ConstTensorView experts;   ///< as in forward
  RouterMode mode;
  float scale = 1;
};
void route_backward(Stream& stream, const RouteBackward& a);

/// Load-balance loss and z-loss of the router, and their gradient. Per scope of T tokens, with
/// p the normalised scores (softmax(l), or sigmoid(l) / sum sigmoid(l)) and n the counts:
///   balance = balance_coefficient * E / (k T^2) sum_e n_e sum_t p_te
///   z       = z_coefficient / T sum_t lse(l_t)^2.
/// counts is taken as constant. Sum over scopes. moe_and_mesh: c and c_z times the scope's share.
struct RouterLoss {
  TensorView losses;       ///< in and out [2], f32: (balance, z); added to
  TensorView dlogits;      ///< in and out [tokens, experts], f32; added to
  ConstTensorView logits;  ///< [tokens, experts], f32
  ConstTensorView counts;  ///< [scopes, experts], f32; may count more tokens than are here
  RouterMode mode;
  int64_t experts_per_token;  ///< k
  int64_t scope_tokens;       ///< T of each scope, over all ranks that share its counts
  float balance_coefficient;
  float z_coefficient;
  ConstTensorView scope_starts = {};  ///< as in RouteForward
};
void router_loss(Stream& stream, const RouterLoss& a);

/// Loss-free balancing: bias_e += rate * sign(mean(counts) - counts_e). Source: arXiv:2408.15664.
struct BalanceBias {
  TensorView bias;         ///< in and out [experts], f32
  ConstTensorView counts;  ///< [experts], f32: of the whole step, over all ranks
  float rate;
};
void balance_bias(Stream& stream, const BalanceBias& a);

namespace cpu {
void route_forward(ThreadPool& threads, const RouteForward& a);
void route_backward(ThreadPool& threads, const RouteBackward& a);
void router_loss(ThreadPool& threads, const RouterLoss& a);
void balance_bias(ThreadPool& threads, const BalanceBias& a);
}  // namespace cpu
namespace gpu {
void route_forward(Stream& stream, const RouteForward& a);
void route_backward(Stream& stream, const RouteBackward& a);
void router_loss(Stream& stream, const RouterLoss& a);
void balance_bias(Stream& stream, const BalanceBias& a);
}  // namespace gpu

}  // namespace tessera
