#pragma once

#include <filesystem>
#include <string>

#include "parallel/communicator.h"
#include "runtime/train/stop_signal.h"
#include "runtime/train/trainer.h"
#include "runtime/watch/rank_watch.h"

namespace tessera {

/// Where a run begins.
struct ResumeFrom {
  enum class Kind : uint8_t {
    kAuto,       ///< the newest valid checkpoint of the run directory, or the start
    kNone,       ///< the start; refused when the run directory has checkpoints
    kDirectory,  ///< this one; an error when it is not valid
  };
  Kind kind = Kind::kAuto;
  std::filesystem::path directory = {};
};

/// What goes on beside a run on this rank.
struct RunExtras {
  StageObserver on_stage = {};  ///< told the stages of saves, for fault injection
  RankWatch* watch = nullptr;   ///< watches over the run from when it has its directory
  TraceSteps traced = {};       ///< the steps that RUN/trace/ shows
};

/// Builds a run from its configuration (mesh resolved) and trains it. Collective over `world`.
/// Throws Error: kUsage before anything is written, kBadData, kNoCheckpoint, kTryAgain.
TrainingEnd run_training(const TrainConfig& config, const ResumeFrom& resume, Communicator& world,
                         const StopSignal& stop, const RunExtras& extras = {});

/// Checks the shapes of every step and counts every byte of the rank that needs most, without data
/// and without allocating, for a mesh of any size. Returns what it found, for people. Throws
/// Error(kUsage).
std::string dry_run(const TrainConfig& config);

}  // namespace tessera
