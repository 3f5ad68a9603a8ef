#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/faults/save_job.h"

namespace tessera::faults {

/// What must be true of a run directory after any fault, and after the restart that follows:
///  * no directory claims to be a checkpoint and is none; nothing was moved to .bad;
///  * every checkpoint is whole in every byte and holds the state of its step;
///  * of the `acknowledged` steps, those that retention keeps are there, and so is the newest;
///  * the restart resumes from the newest valid one, and leaves nothing of cut-off saves behind.
/// Restarts the run. Returns what is not true, one sentence each; sets `newest` to the step that
/// the restart resumed from.
std::vector<std::string> violations(const SaveJob& job, const std::vector<int64_t>& acknowledged,
                                    int64_t& newest);

}  // namespace tessera::faults
