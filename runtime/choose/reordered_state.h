#pragma once

#include <string>
#include <vector>

#include "checkpoint/reader.h"
#include "kernels/core/buffer.h"
#include "runtime/choose/group_order.h"
#include "runtime/import/state_in_pieces.h"

namespace tessera {

/// The state of a run as a checkpoint holds it, with the KV groups of each layer in another order:
/// parameters, masters and both moments alike. All else is as it was. One piece is in memory at a
/// time, twice.
class ReorderedState final : public StateInPieces {
 public:
  /// `reader` must outlive this. `orders` of all layers. `config` is the text of the new run's
  /// configuration.
  ReorderedState(const CheckpointReader& reader, std::vector<GroupOrder> orders, std::string config,
                 int64_t piece_bytes = int64_t{1} << 28);

  int pieces() const override { return static_cast<int>(pieces_.size()); }
  void fill(int piece) override;
  const CheckpointContents& contents(int piece) override;

 private:
  /// Whole tensors, by their numbers in the reader's list, which is sorted by kind.
  struct Piece {
    size_t begin = 0;
    size_t end = 0;
    int64_t bytes = 0;  ///< of the buffer
  };

  NamedTensor named(const TensorFacts& facts, const Buffer& memory, int64_t at) const;

  const CheckpointReader& reader_;
  std::vector<GroupOrder> orders_;
  std::vector<Piece> pieces_;
  Buffer read_;
  Buffer reordered_;
  std::vector<std::vector<NamedTensor>> tensors_;  ///< of each kind that the piece has
  CheckpointContents contents_;
};

}  // namespace tessera
