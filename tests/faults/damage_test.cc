#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>

#include "checkpoint/candidates.h"
#include "checkpoint/layout.h"
#include "kernels/core/log.h"
#include "parallel/thread_communicator.h"
#include "tests/checkpoint/sample_run.h"
#include "tests/faults/campaign.h"
#include "tests/faults/run_check.h"

// Files of the newest checkpoint are damaged. Nothing damaged may ever be loaded: the check of the
// whole checkpoint finds it, and a start goes back to the checkpoint before, and says so in one
// line.

namespace tessera::faults {
namespace {

namespace fs = std::filesystem;
using support::TemporaryDirectory;

constexpr int64_t kNewest = 3;
constexpr int kRanks = 3;

/// A run with the checkpoints of steps 2 and 3, small, written by three ranks.
class DamagedRun {
 public:
  DamagedRun()
      : job_{.run = place_.path() / "run",
             .keep_last = 2,
             .rows = 9,
             .steps = kNewest,
             .faults = {}} {
    run_ranks(kRanks, [&](Communicator& world) { save_steps(world, job_, [](const Message&) {}); });
    fs::copy(job_.run, place_.path() / "intact", fs::copy_options::recursive);
  }

  const SaveJob& job() const { return job_; }
  fs::path checkpoints() const { return job_.run / kCheckpointsName; }
  fs::path checkpoint(int64_t step) const { return checkpoints() / checkpoint_name(step); }
  fs::path shard(int64_t step, int rank) const {
    return checkpoint(step) / kDataName / shard_name(1, rank, 0);
  }
  std::vector<fs::path> files() const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::recursive_directory_iterator(checkpoint(kNewest))) {
      if (entry.is_regular_file()) found.push_back(entry.path());
    }
    std::sort(found.begin(), found.end());
    return found;
  }
  void mend() const {
    fs::remove_all(job_.run);
    fs::copy(place_.path() / "intact", job_.run, fs::copy_options::recursive);
  }

 private:
  TemporaryDirectory place_;
  SaveJob job_;
};

// Whether reading every byte of the newest checkpoint finds it damaged.
bool is_found(const DamagedRun& run) {
  try {
    expect_right(run.checkpoint(kNewest), kNewest, run.job().rows);
    return false;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData) << error.what();
    return true;
  }
}

// What is wrong with a start on the damaged run, which must go back to step 2.
std::vector<std::string> start_wrongs(const DamagedRun& run) {
  std::vector<std::string> wrong;
  testing::internal::CaptureStderr();
  int64_t step = -1;
  try {
    step = restart(run.job());
  } catch (const Error& error) {
    wrong.emplace_back(error.what());
  }
  const std::string log = testing::internal::GetCapturedStderr();
  if (step != kNewest - 1) wrong.push_back(concat("it resumes from step ", step));
  if (std::count(log.begin(), log.end(), '\n') != 1) wrong.push_back(concat("it says: ", log));
  if (log.find(checkpoint_name(kNewest)) == std::string::npos) {
    wrong.push_back(concat("it does not name the checkpoint: ", log));
  }
  return wrong;
}

void flip(const fs::path& file, int64_t at, int bit) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(at);
  const int old = stream.get();
  stream.seekp(at);
  stream.put(static_cast<char>(old ^ (1 << bit)));
}

TEST(DamageFaults, EveryBitCounts) {
  const DamagedRun run;
  Campaign campaign("bit flips");
  std::mt19937_64 random = random_of(6);
  std::vector<std::pair<fs::path, int64_t>> ends;
  int64_t bytes = 0;
  for (const fs::path& file : run.files()) {
    ends.emplace_back(file, bytes += static_cast<int64_t>(fs::file_size(file)));
  }
  const int64_t points = points_of(2000);
  for (int64_t i = 0; i < points; ++i) {
    // One in ten in the small files, which a choice by size would leave alone.
    const auto any = static_cast<size_t>(pick(random, 0, std::ssize(ends) - 1));
    int64_t at = pick(random, 0, bytes - 1);
    if (i % 10 == 0) at = pick(random, any == 0 ? 0 : ends[any - 1].second, ends[any].second - 1);
    const auto file = std::find_if(ends.begin(), ends.end(),
                                   [&](const auto& entry) { return at < entry.second; });
    const int64_t offset = at - (file == ends.begin() ? 0 : std::prev(file)->second);
    const auto bit = static_cast<int>(pick(random, 0, 7));
    flip(file->first, offset, bit);
    std::vector<std::string> wrong;
    if (!is_found(run)) wrong.emplace_back("nothing finds it");
    const std::string what = concat("bit ", bit, " of byte ", offset, " of ", file->first.string());
    if (i % 20 == 0) {
      for (const std::string& sentence : start_wrongs(run)) wrong.push_back(sentence);
      run.mend();
    } else {
      flip(file->first, offset, bit);
    }
    campaign.point(wrong, what);
  }
  EXPECT_FALSE(is_found(run));
  campaign.note(concat(bytes, " bytes in ", ends.size(), " files; a start on every 20th"));
}

TEST(DamageFaults, EveryTruncationIsFound) {
  const DamagedRun run;
  Campaign campaign("truncations");
  int64_t number = 0;
  for (const fs::path& file : run.files()) {
    const auto size = static_cast<int64_t>(fs::file_size(file));
    std::ifstream in(file, std::ios::binary);
    const std::string content{std::istreambuf_iterator<char>(in), {}};
    for (int64_t boundary = 0; boundary <= size + 4096; boundary += 4096) {
      for (const int64_t length : {boundary - 1, boundary, boundary + 1}) {
        if (length < 0 || length == size) continue;
        fs::resize_file(file, static_cast<uintmax_t>(length));
        std::vector<std::string> wrong;
        if (!is_found(run)) wrong.emplace_back("nothing finds it");
        if (++number % 10 == 0) {
          for (const std::string& sentence : start_wrongs(run)) wrong.push_back(sentence);
          run.mend();
        }
        std::ofstream(file, std::ios::binary) << content;
        campaign.point(wrong, concat(file.string(), " of ", length, " bytes"));
      }
    }
  }
  EXPECT_FALSE(is_found(run));
}

struct Case {
  std::string name;
  std::function<void(const DamagedRun&)> damage;
};

void swap_files(const fs::path& a, const fs::path& b) {
  const fs::path aside = a.string() + ".aside";
  fs::rename(a, aside);
  fs::rename(b, a);
  fs::rename(aside, b);
}

void overwrite(const fs::path& file, const std::string& content) {
  std::ofstream(file, std::ios::binary | std::ios::trunc) << content;
}

TEST(DamageFaults, WhatIsLostOrSwappedIsNeverLoaded) {
  const DamagedRun run;
  ASSERT_EQ(fs::file_size(run.shard(2, 1)), fs::file_size(run.shard(3, 1)));
  Campaign campaign("lost, stale and swapped files");
  const auto newest = [](const DamagedRun& r) { return r.checkpoint(kNewest); };
  std::vector<Case> cases;
  for (int rank = 0; rank < kRanks; ++rank) {
    cases.push_back({concat("no shard of rank ", rank),
                     [=](const DamagedRun& r) { fs::remove(r.shard(kNewest, rank)); }});
    cases.push_back({concat("a stale shard of rank ", rank), [=](const DamagedRun& r) {
                       fs::copy(r.shard(2, rank), r.shard(kNewest, rank),
                                fs::copy_options::overwrite_existing);
                     }});
    cases.push_back({concat("shards of ranks swapped from ", rank), [=](const DamagedRun& r) {
                       swap_files(r.shard(kNewest, rank), r.shard(kNewest, (rank + 1) % kRanks));
                     }});
    cases.push_back(
        {concat("a directory in place of the shard of rank ", rank), [=](const DamagedRun& r) {
           fs::remove(r.shard(kNewest, rank));
           fs::create_directory(r.shard(kNewest, rank));
         }});
    cases.push_back(
        {concat("a link in place of the shard of rank ", rank), [=](const DamagedRun& r) {
           const fs::path real = r.checkpoints() / "elsewhere";
           fs::rename(r.shard(kNewest, rank), real);
           fs::create_symlink(real, r.shard(kNewest, rank));
         }});
  }
  for (const std::string file : {kManifestName, kMarkerName}) {
    cases.push_back(
        {"empty " + file, [=](const DamagedRun& r) { overwrite(newest(r) / file, ""); }});
    cases.push_back({"garbage in " + file, [=](const DamagedRun& r) {
                       overwrite(newest(r) / file, std::string(300, '\x5A'));
                     }});
    cases.push_back({file + " of the step before", [=](const DamagedRun& r) {
                       fs::copy(r.checkpoint(2) / file, newest(r) / file,
                                fs::copy_options::overwrite_existing);
                     }});
  }
  cases.push_back(
      {"no manifest", [=](const DamagedRun& r) { fs::remove(newest(r) / kManifestName); }});
  cases.push_back({"no marker", [=](const DamagedRun& r) { fs::remove(newest(r) / kMarkerName); }});
  cases.push_back({"no data", [=](const DamagedRun& r) { fs::remove_all(newest(r) / kDataName); }});
  cases.push_back({"the whole step before under its name", [=](const DamagedRun& r) {
                     fs::remove_all(newest(r));
                     fs::copy(r.checkpoint(2), newest(r), fs::copy_options::recursive);
                   }});
  for (const Case& one : cases) {
    one.damage(run);
    std::vector<std::string> wrong = start_wrongs(run);
    run.mend();
    campaign.point(wrong, one.name);
  }
}

TEST(DamageFaults, TheHintIsOnlyAHint) {
  const DamagedRun run;
  Campaign campaign("damaged hints");
  const fs::path latest = run.checkpoints() / kLatestName;
  const std::vector<Case> cases{
      {"missing", [&](const DamagedRun&) { fs::remove(latest); }},
      {"empty", [&](const DamagedRun&) { overwrite(latest, ""); }},
      {"garbage", [&](const DamagedRun&) { overwrite(latest, std::string(9999, '\xFF')); }},
      {"of another checkpoint",
       [&](const DamagedRun&) { overwrite(latest, "step-00000002 00000000\n"); }},
      {"a directory",
       [&](const DamagedRun&) {
         fs::remove(latest);
         fs::create_directory(latest);
       }},
  };
  for (const Case& one : cases) {
    one.damage(run);
    std::vector<std::string> wrong;
    try {
      const int64_t step = restart(run.job());
      if (step != kNewest) wrong.push_back(concat("it resumes from step ", step));
      if (find_checkpoint(run.job().run) != run.checkpoint(kNewest))
        wrong.emplace_back("not found");
      if (fs::is_regular_file(latest) && find_checkpoint(latest) != run.checkpoint(kNewest)) {
        wrong.emplace_back("not found by its hint");
      }
    } catch (const Error& error) {
      wrong.emplace_back(error.what());
    }
    // The next save mends it, or does without.
    SaveJob job = run.job();
    job.steps = 1;
    std::string failure = "it was not saved";
    run_ranks(2, [&](Communicator& world) {
      save_steps(world, job, [&](const Message& message) {
        if (message.event != Event::kResumed) failure = message.text;
      });
    });
    if (!failure.empty()) wrong.push_back(failure);
    run.mend();
    campaign.point(wrong, one.name);
  }
}

}  // namespace
}  // namespace tessera::faults
