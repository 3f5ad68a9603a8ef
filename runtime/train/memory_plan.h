#pragma once

#include <cstdint>
#include <string>

namespace tessera {

class TrainConfig;

/// Bytes of one rank, by class.
struct MemoryPlan {
  int rank = 0;
  int64_t parameters = 0;  ///< values
  int64_t gradients = 0;
  int64_t optimizer = 0;        ///< master weights and moments of what this rank owns
  int64_t activations = 0;      ///< the arena: the most that any stage of the run needs
  int64_t communication = 0;    ///< scratch of sums under way; what MPI itself holds is not counted
  int64_t batch = 0;            ///< token ids of one step, in host memory, in no total
  int64_t snapshot = 0;         ///< copy of what is being saved, in host memory, in no total
  int64_t parameter_count = 0;  ///< of this rank
  int64_t model_parameters = 0;   ///< of all ranks, each once
  int64_t active_parameters = 0;  ///< that one token meets, without the embedding look-up
  int64_t total() const { return parameters + gradients + optimizer + activations + communication; }
};

/// Runs the first step of every stage on a planning device: all shapes are checked, every byte is
/// counted, nothing is allocated. Exact for rank `rank` of the mesh of `config`, which is resolved,
/// because the real step makes the same calls. Ranks differ where heads, the vocabulary or owned
/// parts do not split evenly, and the first ranks of a sequence fetch fewer keys.
MemoryPlan plan_memory(const TrainConfig& config, int rank = 0);

/// A few lines for people.
std::string to_text(const MemoryPlan& plan);

}  // namespace tessera
