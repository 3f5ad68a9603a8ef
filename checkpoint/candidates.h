#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace tessera {

enum class CandidateState : uint8_t {
  kValid,        ///< marker, manifest, sizes and headers are right
  kUncommitted,  ///< no marker: a save was cut off, or is going on
  kDamaged,      ///< has a marker, and something is missing or wrong
  kUnsupported,  ///< of a format that this program cannot read
  kUnreadable,   ///< the storage failed; nothing is known
};

const char* name_of(CandidateState state);

/// A directory that is, or claims to be, a checkpoint.
struct Candidate {
  std::filesystem::path path;
  CandidateState state = CandidateState::kUncommitted;
  std::string reason;  ///< why it is not valid, one sentence
  CheckpointId id;     ///< of an invalid one only the step, as its name says it
  int64_t bytes = 0;   ///< of a valid one
  bool finite = true;  ///< see CheckpointFacts; of a valid one
};

/// The checkpoints in `checkpoints` (RUN/checkpoints), newest first: by incarnation, then by step,
/// because a run that was resumed from an older step has abandoned the steps after it. Invalid
/// ones are placed by the step in their name. Never throws for damage; empty when there is no
/// such directory.
std::vector<Candidate> list_checkpoints(const std::filesystem::path& checkpoints);

/// One directory, as in the list.
Candidate examine_checkpoint(const std::filesystem::path& directory);

/// The checkpoints directory that a user means by a run directory or by RUN/checkpoints itself.
std::filesystem::path checkpoints_directory(const std::filesystem::path& path);

/// The checkpoint that a user means by `path`: itself, or the newest valid one of a run. Says in
/// one log line each why newer ones were passed over. Throws kNoCheckpoint when there is none.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);

}  // namespace tessera
