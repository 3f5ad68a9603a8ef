#pragma once

#include "kernels/block_selection.h"

namespace tessera {

/// Auxiliary losses that teach the gate, on rows with |S_i| >= 2, and their gradient in z.
/// With t_ib = mean_h softmax_{b in S_i}(l_hib) (a constant), p_i = softmax_{S_i}(z_i),
/// H_i the entropy of p_i, and l the ungated block LSE of the attention:
///   kl      = kl_coefficient sum_i sum_b t log(t / p)     dz += kl_coefficient (p - t)
///   entropy = entropy_coefficient sum_i H_i               dz -= entropy_coefficient p (log p + H)
///   z       = z_coefficient sum_i lse(z_i)^2              dz += 2 z_coefficient lse(z_i) p.
/// The coefficients are gamma / N, eta / N and zeta / N. Source: dgsa definition 2.4.
struct GateLoss {
  TensorView losses;   ///< in and out [3], f32: (kl, entropy, z); added to
  TensorView dscores;  ///< out [groups, tokens, k + 1], f32; overwritten
  BlockSelection selection;
  ConstTensorView block_lse;  ///< [groups, tokens, g, k], f32, from sparse_attention_forward
  float kl_coefficient;
  float entropy_coefficient;
  float z_coefficient;
  ConstTensorView coefficients = {};  ///< [3], f32, (kl, entropy, z): given, the kernel reads these
};
void gate_loss(Stream& stream, const GateLoss& a);

namespace cpu {
void gate_loss(ThreadPool& threads, const GateLoss& a);
}
namespace gpu {
void gate_loss(Stream& stream, const GateLoss& a);
}

}  // namespace tessera
