#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "checkpoint/fail_points.h"
#include "parallel/communicator.h"

namespace tessera::faults {

/// A training run without the training: its state at a step is support::SampleState(step), shared
/// out among the ranks. This file and its .cc are all that the tests here know of how a run saves
/// and resumes.
struct SaveJob {
  std::filesystem::path run;
  int64_t keep_last = 2;
  int64_t rows = 37;  ///< of the larger tensors: the size of the state
  int64_t steps = 0;  ///< ends after so many; 0: goes on for ever
  FailPoints faults;  ///< reached by the stages of every save
};

enum class Event : char {
  kResumed = 'r',    ///< from the checkpoint of `step`, or from scratch at 0
  kCommitted = 'c',  ///< the checkpoint of `step` is acknowledged
  kFailed = 'f',     ///< the save of `step` failed, for the reason in `text`; the job goes on
  kEnded = 'e',      ///< with an error, `text`
};

struct Message {
  Event event = Event::kEnded;
  int64_t step = 0;
  std::string text;
};

/// Resumes from the newest checkpoint, then saves one step after the other. Rank 0 says through
/// `tell` what happened. Every rank runs this. Throws when the state that a rank finds is not that
/// of the step, and what the store throws.
void save_steps(Communicator& world, const SaveJob& job,
                const std::function<void(const Message&)>& tell);

/// What a start of one rank does before it trains: takes the next incarnation, clears away what is
/// left over, loads the newest valid checkpoint and compares its content. Returns its step, 0 when
/// there is none.
int64_t restart(const SaveJob& job);

/// Whether the checkpoint is whole in every byte and holds the state of its step.
void expect_right(const std::filesystem::path& checkpoint, int64_t step, int64_t rows);

}  // namespace tessera::faults
