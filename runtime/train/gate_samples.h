#pragma once

#include <cstdint>
#include <vector>

namespace tessera {

/// A token of the global batch whose row of attention is measured.
struct GateSample {
  int64_t sequence;  ///< of the global batch
  int64_t position;  ///< in it

  friend bool operator==(const GateSample&, const GateSample&) = default;
};

/// `rows` tokens of a global batch of `sequences` sequences of `length` tokens, or as many as there
/// are: one in each of `rows` equal stretches of positions, at a place within it that changes with
/// the step, each in another sequence than the one before. A pure function: the same on every mesh.
std::vector<GateSample> gate_samples(int64_t rows, int64_t sequences, int64_t length, int64_t step);

}  // namespace tessera
