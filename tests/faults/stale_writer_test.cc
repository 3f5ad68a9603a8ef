#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <memory>
#include <thread>

#include "tests/checkpoint/sample_run.h"
#include "tests/faults/campaign.h"
#include "tests/faults/child_job.h"
#include "tests/faults/run_check.h"

// Two jobs in one run directory, as when a scheduler takes a job for dead and starts it again. The
// older one must end with exit code 75 before it acknowledges anything more, wherever in a save the
// newer one meets it, and what the newer one resumes from must hold all that was acknowledged.

namespace tessera::faults {
namespace {

constexpr int kReplaced = 75;
constexpr int64_t kMaxRanks = 3;

int64_t newest_of(const std::vector<int64_t>& steps) {
  return steps.empty() ? 0 : *std::max_element(steps.begin(), steps.end());
}

bool has_saved(const Told& told) {
  return !told.committed.empty();
}

std::string random_stop(std::mt19937_64& random) {
  std::string stage = kSaveStages[static_cast<size_t>(pick(random, 0, kSaveStages.size() - 1))];
  std::replace(stage.begin(), stage.end(), ' ', '_');
  return concat("ckpt.", stage, ":stop@rank0#2");
}

// An older job that runs, or has stopped itself in the middle of its second save, meets a newer one
// at a random moment. Both then save on.
std::vector<std::string> meet(const SaveJob& job, std::mt19937_64& random, std::string& how) {
  SaveJob old = job;
  const bool stopped = pick(random, 0, 1) == 0;
  if (stopped) {
    how = random_stop(random);
    old.faults = FailPoints(how);
  }
  const std::chrono::microseconds delay(pick(random, 0, 8000));
  ChildJob older(old, static_cast<int>(pick(random, 1, kMaxRanks)));
  if (stopped) {
    // Some stages are never reached; then it is met as it runs.
    const auto is_past = [](const Told& told) { return told.committed.size() >= 4; };
    while (!older.has_stopped() && !is_past(older.told()))
      older.listen(std::chrono::milliseconds(1));
  } else {
    older.wait_for(has_saved);
    std::this_thread::sleep_for(delay);
    how = concat("met after ", delay.count(), " us");
  }
  ChildJob newer(job, static_cast<int>(pick(random, 1, kMaxRanks)));
  if (!newer.wait_for([](const Told& told) { return told.resumed.has_value(); })) {
    return {concat("the newer job ended with ", exit_code(newer.wait()), ": ", newer.told().ended)};
  }
  older.send(SIGCONT);
  std::vector<std::string> wrong;
  const int status = older.wait();
  if (exit_code(status) != kReplaced) {
    wrong.push_back(
        concat("the older job ended with ", exit_code(status), ": ", older.told().ended));
  }
  if (older.told().ended.find("was replaced by incarnation") == std::string::npos) {
    wrong.push_back(concat("the older job says: ", older.told().ended));
  }
  newer.wait_for(has_saved);
  newer.send(SIGKILL);
  newer.wait();
  if (!newer.told().resumed || *newer.told().resumed < newest_of(older.told().committed)) {
    wrong.push_back(concat("the newer job resumed from ", newer.told().resumed.value_or(-1),
                           ", but ", newest_of(older.told().committed), " was acknowledged"));
  }
  if (!newer.told().failed.empty()) wrong.push_back(newer.told().failed.front().text);
  int64_t newest = 0;
  for (std::string& sentence : violations(job, newer.told().committed, newest)) {
    wrong.push_back(std::move(sentence));
  }
  return wrong;
}

TEST(StaleWriterFaults, TheOlderJobEndsWithoutACommit) {
  Campaign campaign("two jobs, one run directory");
  std::mt19937_64 random = random_of(7);
  const support::TemporaryDirectory place;
  const SaveJob job{.run = place.path(), .keep_last = 2, .faults = {}};
  for (const int64_t points = points_of(200); campaign.points() < points;) {
    std::string how;
    const std::vector<std::string> wrong = meet(job, random, how);
    campaign.point(wrong, how);
    if (!wrong.empty()) return;
  }
}

// Started at once, as by a user's mistake: one goes on, all others end.
TEST(StaleWriterFaults, OfJobsThatStartTogetherOneGoesOn) {
  Campaign campaign("four jobs started at once");
  for (const int64_t points = points_of(20); campaign.points() < points;) {
    const support::TemporaryDirectory place;
    const SaveJob job{.run = place.path(), .keep_last = 2, .faults = {}};
    std::vector<std::unique_ptr<ChildJob>> jobs;
    for (int i = 0; i < 4; ++i) jobs.push_back(std::make_unique<ChildJob>(job, 2));
    std::vector<std::string> wrong;
    std::vector<ChildJob*> alive;
    // Those that were replaced end by themselves; of the last one there is no end to wait for.
    while (jobs.size() -
               static_cast<size_t>(std::count_if(
                   jobs.begin(), jobs.end(), [](const auto& one) { return one->has_ended(); })) >
           1) {
      for (const auto& one : jobs) one->listen(std::chrono::milliseconds(1));
    }
    std::vector<int64_t> acknowledged;
    for (const auto& one : jobs) {
      if (!one->has_ended()) {
        const size_t before = one->told().committed.size();
        one->wait_for([&](const Told& told) { return told.committed.size() > before; });
        one->send(SIGKILL);
        one->wait();
        acknowledged = one->told().committed;
      } else if (exit_code(one->wait()) != kReplaced) {
        wrong.push_back(concat("one ended with ", exit_code(one->wait()), ": ", one->told().ended));
      }
    }
    int64_t newest = 0;
    for (std::string& sentence : violations(job, acknowledged, newest)) {
      wrong.push_back(std::move(sentence));
    }
    campaign.point(wrong, "four jobs");
    if (!wrong.empty()) return;
  }
}

}  // namespace
}  // namespace tessera::faults
