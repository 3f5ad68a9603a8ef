#include "model/sparsity_budget.h"

#include <algorithm>
#include <cmath>

#include "model/model.pb.h"

namespace tessera {

int64_t global_groups(const ModelConfig& config) {
  const AttentionConfig& attention = config.attention();
  if (attention.has_global_groups()) return attention.global_groups();
  const double share = (1 - static_cast<double>(attention.sparse_ratio())) * config.kv_heads();
  return std::max<int64_t>(1, std::lround(share));
}

int64_t kept_blocks(const ModelConfig& config, int64_t sequence_length) {
  const AttentionConfig& attention = config.attention();
  if (attention.kept_blocks() > 0) return attention.kept_blocks();
  const double doublings = std::ceil(std::log2(static_cast<double>(sequence_length) / 64));
  const double tokens =
      64 * static_cast<double>(attention.budget_factor()) * std::max(1.0, doublings);
  return std::max<int64_t>(2, static_cast<int64_t>(std::ceil(tokens / attention.block())));
}

int64_t most_blocks(const ModelConfig& config, int64_t sequence_length) {
  const int64_t block = config.attention().block();
  return std::max<int64_t>(1, (sequence_length + block - 1) / block);
}

}  // namespace tessera
