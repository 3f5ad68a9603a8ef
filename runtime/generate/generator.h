#pragma once

#include <functional>
#include <vector>

#include "model/single_rank.h"
#include "model/step_sums.h"
#include "runtime/generate/loaded_model.h"
#include "runtime/generate/sampler.h"

namespace tessera {

/// Continues one text with a cached model, a token at a time.
class Generator {
 public:
  /// Room for `max_tokens` tokens, prompt included. Attention is as in step `step` of the model's
  /// run; 0: as in its last one. All references must outlive this.
  Generator(const LoadedModel& loaded, Stream& stream, int64_t max_tokens, int64_t step = 0);

  /// Reads `prompt` (at least one token), then draws up to `count` tokens and hands each to
  /// `on_token`; stops early after `end_of_document`. Call once.
  /// Throws Error(kUsage) when prompt and count do not fit, or a token is not of the vocabulary.
  void run(const std::vector<int32_t>& prompt, int64_t count, int32_t end_of_document,
           const SamplerOptions& options, const std::function<void(int32_t)>& on_token);

 private:
  ConstTensorView next(int32_t token);

  const LoadedModel& loaded_;
  Stream& stream_;
  int64_t max_tokens_;
  SparsityPlan plan_;
  std::vector<int64_t> kept_of_layers_;
  std::vector<AttentionCache> caches_;
  StepSumsBuffer sums_;
  SingleRank alone_;
  Arena arena_;
  Buffer logits_;
  std::vector<int32_t> recent_;  ///< the token at position_ - 1 and what the model's smear sees
  int64_t position_ = 0;
};

}  // namespace tessera
