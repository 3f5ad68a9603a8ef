#pragma once

#include "tests/reference/gate.h"
#include "tests/support/segments.h"
#include "tests/support/selection.h"

namespace tessera::support {

/// A selection by the definition, from random scores scaled by `scale`, for tests of kernels that
/// come after it. `z` of every slot is in the selection.
inline Selection choose_at_random(const Segments& segments, const BlockRule& rule, int64_t groups,
                                  uint64_t seed, double scale = 1) {
  Selection selection(groups, segments.tokens(), rule.kept);
  for (int64_t c = 0; c < groups; ++c) {
    for (int64_t i = 0; i < segments.tokens(); ++i) {
      const int64_t own = segments.own_block(i);
      const Tensor random =
          random_tensor(DType::kF32, {own + 1},
                        philox(seed, static_cast<uint64_t>(c), static_cast<uint64_t>(i))[0], scale);
      const std::vector<double> z = to_doubles(random);
      const reference::Choice choice = reference::choose(z, own, rule);
      const auto blocks = selection.row_of_blocks(c, i);
      const auto scores = selection.row_of_scores(c, i);
      for (size_t s = 0; s < blocks.size(); ++s) {
        const int64_t b = s + 1 == blocks.size()     ? choice.runner_up
                          : s < choice.blocks.size() ? choice.blocks[s]
                                                     : -1;
        blocks[s] = static_cast<int32_t>(b);
        scores[s] = b < 0 ? 0 : static_cast<float>(z[static_cast<size_t>(b)]);
      }
      selection.count(c, i) = static_cast<int32_t>(choice.blocks.size());
    }
  }
  return selection;
}

}  // namespace tessera::support
