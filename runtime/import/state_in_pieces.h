#pragma once

#include "checkpoint/checkpoint.h"
#include "checkpoint/store.h"

namespace tessera {

class TrainConfig;

/// The state of a run in pieces that fit into little memory, one at a time: all pieces together
/// hold every element once, as the ranks of a world do.
class StateInPieces {
 public:
  virtual ~StateInPieces() = default;

  virtual int pieces() const = 0;
  /// Makes a piece's values in place of those of the one before.
  virtual void fill(int piece) = 0;
  /// What to save of a piece: views of this object's memory, valid until the next call. The same
  /// names and boxes before fill() as after.
  virtual const CheckpointContents& contents(int piece) = 0;
};

/// Writes the pieces one after the other into one checkpoint, as if each were a rank's, and commits
/// it. Throws Error: what fill() throws, kTryAgain for trouble of the storage; then there is no
/// checkpoint.
SaveReport save_in_pieces(CheckpointStore& store, StateInPieces& state);

/// The same in the run directory of `config`, with what it says of how many are kept.
SaveReport save_in_pieces(const TrainConfig& config, StateInPieces& state);

}  // namespace tessera
