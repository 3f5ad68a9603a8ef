#pragma once

#include <cstdint>
#include <span>

namespace tessera {

/// How the next token is drawn.
struct SamplerOptions {
  double temperature = 1;  ///< >= 0; 0: the most likely token
  double top_p = 1;        ///< in (0, 1]: only the most likely tokens that together reach this
  uint64_t seed = 1;
};

/// Token number `draw` of a text: a pure function of (logits, options, draw). Ties go to the lower
/// token; a logit that is NaN is never drawn.
/// Source of top-p: Holtzman et al. 2019, arXiv:1904.09751.
int32_t sample(std::span<const float> logits, const SamplerOptions& options, uint64_t draw);

}  // namespace tessera
