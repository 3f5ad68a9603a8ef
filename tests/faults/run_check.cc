#include "tests/faults/run_check.h"

#include <algorithm>
#include <set>

#include "checkpoint/candidates.h"
#include "checkpoint/layout.h"
#include "tests/faults/silence.h"

namespace tessera::faults {

namespace {

namespace fs = std::filesystem;
using Sentences = std::vector<std::string>;

// The steps of the valid checkpoints. What is no checkpoint may be there before a restart only.
std::set<int64_t> valid_steps(const SaveJob& job, bool restarted, Sentences& wrong) {
  std::set<int64_t> steps;
  for (const Candidate& candidate : list_checkpoints(job.run / kCheckpointsName)) {
    const bool cut_off = candidate.state == CandidateState::kUncommitted;
    if (candidate.state == CandidateState::kValid) {
      steps.insert(candidate.id.step);
    } else if (restarted || !cut_off) {
      wrong.push_back(concat(candidate.path.string(), " is ", name_of(candidate.state),
                             restarted ? " after a restart: " : ": ", candidate.reason));
    }
    if (candidate.state != CandidateState::kValid || restarted) continue;
    try {
      expect_right(candidate.path, candidate.id.step, job.rows);
    } catch (const Error& error) {
      wrong.emplace_back(error.what());
    }
  }
  return steps;
}

void check_acknowledged(const SaveJob& job, const std::vector<int64_t>& acknowledged,
                        const std::set<int64_t>& steps, Sentences& wrong) {
  const int64_t newest = steps.empty() ? 0 : *steps.rbegin();
  for (const int64_t step : acknowledged) {
    const bool kept = step > newest - job.keep_last;
    if (kept && !steps.contains(step)) {
      wrong.push_back(
          concat("step ", step, " was acknowledged and is lost; the newest is ", newest));
    }
  }
}

void check_leftovers(const fs::path& checkpoints, Sentences& wrong) {
  const std::set<std::string> expected{kFenceName, kLatestName, concat(kLatestName, ".tmp")};
  if (!fs::exists(checkpoints)) return;
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    const std::string name = entry.path().filename();
    if (name == kTrashName && fs::is_empty(entry.path())) continue;
    if (!step_of_name(name) && !expected.contains(name)) {
      wrong.push_back(concat(entry.path().string(), " is left over after a restart"));
    }
  }
}

}  // namespace

std::vector<std::string> violations(const SaveJob& job, const std::vector<int64_t>& acknowledged,
                                    int64_t& newest) {
  Sentences wrong;
  const std::set<int64_t> steps = valid_steps(job, false, wrong);
  check_acknowledged(job, acknowledged, steps, wrong);
  try {
    const Silence silence;
    newest = restart(job);
  } catch (const Error& error) {
    wrong.push_back(concat("the restart fails: ", error.what()));
    return wrong;
  }
  if (newest != (steps.empty() ? 0 : *steps.rbegin())) {
    wrong.push_back(concat("the restart resumed from step ", newest, ", expected the newest"));
  }
  if (valid_steps(job, true, wrong) != steps) {
    wrong.emplace_back("the restart changed the checkpoints");
  }
  check_leftovers(job.run / kCheckpointsName, wrong);
  return wrong;
}

}  // namespace tessera::faults
