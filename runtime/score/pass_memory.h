#pragma once

#include <cstdint>
#include <span>

#include "model/transformer.h"

namespace tessera {

/// What a pass over some tokens is to take, before there are any.
struct PlannedPass {
  DType dtype;        ///< of the model's matrices
  int64_t sequences;  ///< rows of tokens
  int64_t length;     ///< tokens of each
  int64_t segments;   ///< in all
  SparsityPlan sparsity;
  std::span<const int64_t> kept_of_layers = {};  ///< as Transformer::Run
  bool gradients = false;                        ///< after the logits also forward and backward
  const GroupMix* mix = nullptr;                 ///< as Transformer::Run
};

/// Bytes of the arena that Transformer::logits (and forward_backward) of such a pass need: counted,
/// not guessed.
int64_t pass_memory(const ModelConfig& model, const PlannedPass& pass);

}  // namespace tessera
