#pragma once

#include <cuda_runtime.h>

#include "kernels/gate_score.h"

/// The score of one block by one lane: the bits of gate_score.h. `scale` is gate_scale.
namespace tessera::gpu {

__device__ __forceinline__ float gate_product(const float* qt, const float* kt, int gate_dim,
                                              float scale) {
  float sum = 0;
  for (int d = 0; d < gate_dim; ++d) sum = __fmaf_rn(kt[d], qt[d], sum);
  return __fmaf_rn(sum, scale, 0.0f);
}

/// `kt`: [gate_keys, gate_dim], the keys of one block.
__device__ inline float gate_score(const float* qt, const float* kt, int gate_dim, int gate_keys,
                                   float scale) {
  float largest = gate_product(qt, kt, gate_dim, scale);
  if (gate_keys == 1) return largest;
  for (int a = 1; a < gate_keys; ++a) {
    const float x = gate_product(qt, kt + int64_t{a} * gate_dim, gate_dim, scale);
    largest = x > largest ? x : largest;
  }
  float sum = 0;
  for (int a = 0; a < gate_keys; ++a) {
    sum += gate_exp(gate_product(qt, kt + int64_t{a} * gate_dim, gate_dim, scale) - largest);
  }
  return largest + gate_log(sum);
}

}  // namespace tessera::gpu
