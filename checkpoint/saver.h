#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <future>
#include <optional>
#include <string>

#include "checkpoint/snapshot.h"
#include "checkpoint/store.h"
#include "checkpoint/writer.h"
#include "parallel/communicator.h"

namespace tessera {

/// What a rank tells the others about the save under way. Summed over all ranks, in any message
/// that they exchange anyway, it is what advance() takes: saving adds no message to a step.
using SaveVotes = std::array<double, 7>;

/// Saves by all ranks of a communicator, each writing its own tensors, while training goes on.
///
/// start() copies; a thread on each rank then does all that touches files, and never
/// communicates. A save takes three phases, of which the ranks learn the end at step boundaries:
/// rank 0 makes the directory; all write their parts; rank 0 commits, and deletes what retention
/// lets go. One save is under way at a time. Whatever fails, older checkpoints are as they were.
///
/// All ranks call start(), advance() and finish() at the same points of the program.
class CheckpointSaver {
 public:
  struct Options {
    /// false: nothing is copied but what is not in host memory, and the contents stay as they are
    /// until finish() returns.
    bool background = true;
    StageObserver on_stage = {};  ///< of this rank; what rank 0 does is told to its store's, too
  };
  /// `store` is rank 0's, nullptr elsewhere; all ranks see the same file system. Both outlive this.
  CheckpointSaver(Communicator& ranks, CheckpointStore* store, Options options);

  /// Takes the memory for snapshots of `contents` now rather than at the first save.
  void reserve(Stream& stream, const CheckpointContents& contents);

  /// Begins to save what this rank holds; steps, counts and blobs are rank 0's. Collective. False
  /// when a save is under way: then this one is skipped, and counted.
  bool start(Stream& stream, const CheckpointContents& contents);
  bool busy() const { return phase_ != Phase::kIdle; }
  /// The step that is being saved; only while busy().
  int64_t step() const;
  int64_t skipped() const { return skipped_; }

  /// Adds what the caller has spent on this save besides to the report's stall.
  void charge(double seconds) { stall_ += seconds; }

  /// The digest of the state one step later, this rank's share of a sum over the ranks. It becomes
  /// part of the checkpoint when every rank says it before its second advance() of the save.
  void set_next_step_digest(uint64_t share);

  /// To be summed over the ranks, then given to advance(). Zeros while there is nothing to say.
  SaveVotes votes();
  /// A step of the save under way, when all ranks have ended the one before. The report when the
  /// save has ended, committed or not; that of rank 0 says all, the others' only `committed`.
  /// Throws kTryAgain on every rank when a newer incarnation has taken over.
  std::optional<SaveReport> advance(const SaveVotes& sums);
  /// Waits for the save under way, if any. Collective.
  std::optional<SaveReport> finish();

 private:
  enum class Phase : uint8_t { kIdle, kOpening, kWriting, kCommitting };

  /// What this rank's thread has left when it ends.
  struct Outcome {
    std::optional<Failure> failure;  ///< of this rank's part
    bool replaced = false;           ///< the failure is that of the whole incarnation
    std::optional<SaveTicket> ticket;
    SaveReport report;
  };

  bool copies(const Stream& stream) const;
  void run(std::function<void(Outcome&)> work);
  bool ended();
  void write_own_part(const SaveTicket& ticket, Outcome& outcome) const;
  void take_digest(const SaveVotes& sums);
  std::optional<SaveReport> go_on(const SaveVotes& sums);
  std::optional<SaveReport> begin_writing();
  void begin_commit(bool failed);
  SaveReport end(bool committed);
  [[noreturn]] void stop_replaced();

  Communicator& ranks_;
  CheckpointStore* store_;
  Options options_;
  Snapshot snapshot_;
  CheckpointContents contents_;  ///< of the save under way
  Phase phase_ = Phase::kIdle;
  std::optional<uint64_t> digest_share_;  ///< not yet summed
  double stall_ = 0;                      ///< seconds that the caller has spent on this save
  std::chrono::steady_clock::time_point begin_;
  int64_t skipped_ = 0;
  Outcome outcome_;
  std::future<Outcome> job_;  ///< last: its destructor waits for the thread, which uses the rest
};

}  // namespace tessera
