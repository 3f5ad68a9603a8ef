#pragma once

#include <cstdint>
#include <string>

namespace tessera {

class TrainConfig;

/// Bytes of one rank, by class.
struct MemoryPlan {
  int64_t parameters = 0;  ///< values
  int64_t gradients = 0;
  int64_t optimizer = 0;    ///< master weights and moments of what this rank owns
  int64_t activations = 0;  ///< the arena: the most that any stage of the run needs
  int64_t parameter_count = 0;
  int64_t active_parameters = 0;  ///< that one token meets, without the embedding look-up
  int64_t total() const { return parameters + gradients + optimizer + activations; }
};

/// Runs the first step of every stage on a planning device: all shapes are checked, every byte is
/// counted, nothing is allocated. Exact, because the real step makes the same calls. The mesh of
/// `config` is resolved; every rank of it needs as much.
MemoryPlan plan_memory(const TrainConfig& config);

/// A few lines for people.
std::string to_text(const MemoryPlan& plan);

}  // namespace tessera
