#pragma once

#include <string>
#include <vector>

#include "checkpoint/reader.h"
#include "kernels/core/buffer.h"
#include "model/parameter.h"
#include "runtime/choose/group_order.h"
#include "runtime/import/state_in_pieces.h"

namespace tessera {

class TrainConfig;

/// The state of a run as a checkpoint holds it, with the KV groups of each layer in another order:
/// parameters, masters and both moments alike. Where `config` has another number of global groups,
/// so have the gates: the last are left out, or begin as those of a new run, with moments of 0. All
/// else is as it was. One piece is in memory at a time, twice.
class ReorderedState final : public StateInPieces {
 public:
  /// `reader` must outlive this. `orders` of all layers. `config` of the new run; its model is that
  /// of the checkpoint but for the number of global groups.
  ReorderedState(const CheckpointReader& reader, std::vector<GroupOrder> orders,
                 const TrainConfig& config, int64_t piece_bytes = int64_t{1} << 28);

  int pieces() const override { return static_cast<int>(pieces_.size()); }
  void fill(int piece) override;
  const CheckpointContents& contents(int piece) override;

 private:
  /// Whole tensors, by their numbers in the reader's list, which is sorted by kind.
  struct Piece {
    size_t begin = 0;
    size_t end = 0;
    int64_t bytes = 0;  ///< of either buffer
  };

  void declare_gates(const TrainConfig& config);
  /// Nothing for a parameter of no gate.
  const Parameter* gate_of(const std::string& parameter) const;
  Shape new_shape(const TensorFacts& facts) const;
  int64_t room_for(const TensorFacts& facts) const;
  TensorView target(const TensorFacts& facts, int64_t at) const;

  const CheckpointReader& reader_;
  std::vector<GroupOrder> orders_;
  ParameterStore gates_;  ///< as a new run of the configuration has them
  std::vector<Piece> pieces_;
  Buffer read_;
  Buffer reordered_;
  std::vector<std::vector<NamedTensor>> tensors_;  ///< of each kind that the piece has
  CheckpointContents contents_;
};

}  // namespace tessera
