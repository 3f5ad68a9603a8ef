#pragma once

#include <optional>

#include "checkpoint/saver.h"
#include "parallel/bucket_exchange.h"
#include "runtime/train/train_state.h"

namespace tessera {

/// Whether a run saves while it trains: not when it only saves at its end.
bool saves_in_background(const TrainConfig& config);

/// What a run saves, when, and what it checks before and after: all that the training loop has to
/// do with checkpoints. All ranks call it at the same points.
class RunSaver {
 public:
  /// Nothing here is owned. `checkpoints` is rank 0's, nullptr elsewhere; `on_stage` is this
  /// rank's.
  struct Parts {
    const TrainConfig& config;
    const ProcessMesh& mesh;
    Stream& stream;
    BucketExchange& exchange;
    TrainState& state;
    CheckpointStore* checkpoints;
    StageObserver on_stage;
  };
  /// Takes the memory for snapshots. `state` is as it was resumed.
  explicit RunSaver(const Parts& parts);

  /// For the sums of a step; see CheckpointSaver.
  SaveVotes votes() { return saver_.votes(); }
  /// After each step, with the sums: goes on with the save under way, and begins one when it is
  /// `due`. Replicas are compared first (replica_check.h). A save that fails is logged, and
  /// training goes on; one that is due while another is under way is left out, unless retention
  /// would keep it for ever.
  void after_step(const SaveVotes& sums, bool due);
  /// At the end: waits for the save under way, and saves the last state when it is not saved yet.
  /// Throws kTryAgain when that fails: older checkpoints are intact.
  void finish();

 private:
  bool background() const { return saves_in_background(parts_.config); }
  int64_t step() const { return parts_.state.progress.step; }
  void begin_save(double spent);
  void wait();
  void note(const std::optional<SaveReport>& report, int64_t step);
  double check_replicas_now() const;
  void prove_resume();
  uint64_t share_of_digest() const;

  Parts parts_;
  CheckpointSaver saver_;
  int64_t saved_step_;
};

}  // namespace tessera
