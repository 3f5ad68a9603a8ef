#pragma once

#include <cstdint>

namespace tessera {

class ModelConfig;

/// Number of global KV groups: attention.global_groups, else max(1, round((1 - r) kv_heads)).
int64_t global_groups(const ModelConfig& config);

/// Blocks that a token of a global group may choose at full sparsity in sequences of n tokens:
/// attention.kept_blocks, else max(2, ceil(T / B)) with T(n) = 64 c ceil(log2(n / 64)) tokens.
/// Source: dgsa definition 2.2.
int64_t kept_blocks(const ModelConfig& config, int64_t sequence_length);

/// Candidates can be no more than this: every block of the longest sequence.
int64_t most_blocks(const ModelConfig& config, int64_t sequence_length);

}  // namespace tessera
