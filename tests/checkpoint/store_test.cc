#include "checkpoint/store.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <fstream>

#include "checkpoint/verify.h"
#include "tests/checkpoint/sample_run.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using support::quick_options;
using support::SampleState;
using support::TemporaryDirectory;

// The state of the newest valid checkpoint, and its step in `step`.
SampleState restored(CheckpointStore& store, int64_t& step) {
  SampleState state(0);
  state.fill(0xA5);
  const std::optional<CheckpointId> id =
      store.restore([&](const CheckpointReader& reader) { reader.read(state.groups()); });
  step = id ? id->step : -1;
  return state;
}

std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (entry.path().filename().string().starts_with("step-")) {
      names.push_back(entry.path().filename());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST(CheckpointStore, RestoresWhatItSavedAcrossIncarnations) {
  const TemporaryDirectory run;
  {
    CheckpointStore store(run.path(), quick_options());
    EXPECT_EQ(store.epoch(), 1);
    int64_t step = 0;
    restored(store, step);
    EXPECT_EQ(step, -1);
    const SaveReport report = store.save(SampleState(10).contents());
    ASSERT_TRUE(report.committed) << report.failure;
    EXPECT_EQ(report.path, run.path() / "checkpoints/step-00000010");
    ASSERT_TRUE(store.save(SampleState(20).contents()).committed);
  }
  CheckpointStore store(run.path(), quick_options());
  EXPECT_EQ(store.epoch(), 2);
  int64_t step = 0;
  EXPECT_EQ(restored(store, step), SampleState(20));
  EXPECT_EQ(step, 20);
  ASSERT_TRUE(store.save(SampleState(30).contents()).committed);

  const CheckpointReader reader(find_checkpoint(run.path()));
  EXPECT_EQ(reader.facts().id, (CheckpointId{2, 30}));
  EXPECT_EQ(reader.facts().parent, (CheckpointId{1, 20}));
  EXPECT_EQ(reader.facts().consumed_tokens, 30 * 4096);
  EXPECT_EQ(reader.facts().mesh[3], (MeshAxis{"tensor", 1}));
  EXPECT_EQ(reader.read_blob("cursor"), "position 30");
  EXPECT_EQ(reader.read_blob("empty"), "");
  EXPECT_EQ(reader.read_blob(kConfigBlob), "steps: 30\n");
  verify_checkpoint(reader);
}

TEST(CheckpointStore, SavesAStepOnlyOnce) {
  const TemporaryDirectory run;
  CheckpointStore store(run.path(), quick_options());
  ASSERT_TRUE(store.save(SampleState(10).contents()).committed);
  const SaveReport again = store.save(SampleState(10).contents());
  EXPECT_TRUE(again.committed);
  EXPECT_EQ(names_in(store.directory()), std::vector<std::string>{"step-00000010"});
}

TEST(CheckpointStore, ARunResumedFromAnOlderStepAbandonsTheNewerOnes) {
  const TemporaryDirectory run;
  {
    CheckpointStore store(run.path(), quick_options());
    for (const int64_t step : {10, 20, 30}) {
      ASSERT_TRUE(store.save(SampleState(step).contents()).committed);
    }
  }
  CheckpointStore store(run.path(), quick_options());
  SampleState state(0);
  store.restore_from(store.directory() / "step-00000010",
                     [&](const CheckpointReader& reader) { reader.read(state.groups()); });
  EXPECT_EQ(state, SampleState(10));
  const SaveReport report = store.save(SampleState(20).contents());
  ASSERT_TRUE(report.committed) << report.failure;
  EXPECT_EQ(report.path.filename(), "step-00000020.e000002");
  EXPECT_EQ(find_checkpoint(run.path()), report.path);
  EXPECT_EQ(store.list()[0].id, (CheckpointId{2, 20}));
  EXPECT_EQ(store.list()[1].id, (CheckpointId{1, 30}));
}

TEST(CheckpointStore, AFencedOffIncarnationCannotCommit) {
  const TemporaryDirectory run;
  CheckpointStore old_job(run.path(), quick_options());
  ASSERT_TRUE(old_job.save(SampleState(10).contents()).committed);
  CheckpointStore new_job(run.path(), quick_options());
  try {
    (void)old_job.save(SampleState(20).contents());
    FAIL() << "the old incarnation has saved";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kTryAgain);
    EXPECT_NE(
        std::string(error.what()).find("incarnation 1 of this run was replaced by incarnation 2"),
        std::string::npos)
        << error.what();
  }
  EXPECT_EQ(names_in(new_job.directory()), std::vector<std::string>{"step-00000010"});
}

// The worst moments: a new incarnation starts while the old one is within a commit.
TEST(CheckpointStore, ATakeOverWithinASaveNeverMixesTwoIncarnations) {
  for (const char* moment : {"directory made", "tensor written", "part synced", "manifest renamed",
                             "fence checked", "marker renamed"}) {
    const TemporaryDirectory run;
    std::optional<CheckpointStore> new_job;
    StoreOptions options = quick_options();
    options.on_stage = [&](const char* stage) {
      if (std::string(stage) != moment || new_job) return;
      new_job.emplace(run.path(), quick_options());
      ASSERT_TRUE(new_job->save(SampleState(20).contents()).committed);
    };
    CheckpointStore old_job(run.path(), options);
    EXPECT_THROW((void)old_job.save(SampleState(20, 0, 1, 41).contents()), Error) << moment;
    int64_t step = 0;
    const CheckpointReader reader(find_checkpoint(run.path()));
    verify_checkpoint(reader);
    EXPECT_EQ(restored(*new_job, step), SampleState(20)) << moment;
    EXPECT_EQ(step, 20);
  }
}

TEST(CheckpointStore, FallsBackAndQuarantinesWhatIsDamaged) {
  const TemporaryDirectory run;
  {
    CheckpointStore store(run.path(), quick_options());
    for (const int64_t step : {10, 20, 30}) {
      ASSERT_TRUE(store.save(SampleState(step).contents()).committed);
    }
  }
  const fs::path checkpoints = run.path() / "checkpoints";
  std::ofstream(checkpoints / "step-00000030/COMMITTED").close();
  {  // a byte of the first tensor of step 20: only reading finds it
    std::fstream shard(checkpoints / "step-00000020/d/e000001-r00000-0.shard",
                       std::ios::in | std::ios::out | std::ios::binary);
    shard.seekp(4096);
    shard.put('\x77');
  }
  CheckpointStore store(run.path(), quick_options());
  int64_t step = 0;
  EXPECT_EQ(restored(store, step), SampleState(10));
  EXPECT_EQ(step, 10);
  EXPECT_EQ(names_in(checkpoints), std::vector<std::string>{"step-00000010"});
  EXPECT_EQ(names_in(checkpoints / ".bad"),
            (std::vector<std::string>{"step-00000020", "step-00000030"}));
}

TEST(CheckpointStore, NeverStartsFromScratchInSilence) {
  const TemporaryDirectory run;
  {
    CheckpointStore store(run.path(), quick_options());
    ASSERT_TRUE(store.save(SampleState(10).contents()).committed);
  }
  fs::remove(run.path() / "checkpoints/step-00000010/MANIFEST.pb");
  for (int attempt = 0; attempt < 2; ++attempt) {  // the second finds only .bad
    CheckpointStore store(run.path(), quick_options());
    try {
      store.restore([](const CheckpointReader&) {});
      FAIL() << "nothing was restored and nothing was said";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kNoCheckpoint);
    }
  }
}

TEST(CheckpointStore, AnotherModelIsAnErrorAndMovesNothing) {
  const TemporaryDirectory run;
  CheckpointStore store(run.path(), quick_options());
  ASSERT_TRUE(store.save(SampleState(10).contents()).committed);
  const SampleState other(10, 0, 1, 38);
  try {
    store.restore([&](const CheckpointReader& reader) { reader.read(other.groups()); });
    FAIL() << "a tensor of another shape was read";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData);
    EXPECT_NE(std::string(error.what())
                  .find("parameter embedding is bf16 [37, 24], expected bf16 [38, 24]"),
              std::string::npos)
        << error.what();
  }
  EXPECT_EQ(names_in(store.directory()), std::vector<std::string>{"step-00000010"});
}

TEST(CheckpointStore, KeepsTheLastAndTheMilestones) {
  const TemporaryDirectory run;
  StoreOptions options = quick_options();
  options.retention = {.keep_last = 2, .keep_every = 30};
  CheckpointStore store(run.path(), options);
  for (int64_t step = 10; step <= 80; step += 10) {
    ASSERT_TRUE(store.save(SampleState(step).contents()).committed);
  }
  EXPECT_EQ(names_in(store.directory()),
            (std::vector<std::string>{"step-00000030", "step-00000060", "step-00000070",
                                      "step-00000080"}));
  EXPECT_TRUE(fs::is_empty(store.directory() / ".trash"));
}

TEST(CheckpointStore, ClearsAwayWhatACutOffSaveHasLeft) {
  const TemporaryDirectory run;
  fs::create_directories(run.path() / "checkpoints/step-00000030/d");
  std::ofstream(run.path() / "checkpoints/step-00000030/d/x.shard") << "half";
  fs::create_directories(run.path() / "checkpoints/.trash/step-00000020/d");
  const CheckpointStore store(run.path(), quick_options());
  EXPECT_TRUE(names_in(store.directory()).empty());
  EXPECT_TRUE(fs::is_empty(store.directory() / ".trash"));
}

TEST(CheckpointStore, AFullDiskLosesNothingAndTheNextSaveWorks) {
  const TemporaryDirectory run;
  CheckpointStore store(run.path(), quick_options());
  ASSERT_TRUE(store.save(SampleState(10).contents()).committed);
  // Writes beyond the limit fail like those on a full disk.
  ASSERT_NE(std::signal(SIGXFSZ, SIG_IGN), SIG_ERR);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  for (const rlim_t limit : {rlim_t{0}, rlim_t{4096}, rlim_t{20'000}}) {
    const rlimit small{.rlim_cur = limit, .rlim_max = before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    const SaveReport report = store.save(SampleState(20).contents());
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_FALSE(report.committed);
    EXPECT_NE(report.failure.find("cannot write"), std::string::npos) << report.failure;
    EXPECT_EQ(names_in(store.directory()), std::vector<std::string>{"step-00000010"});
  }
  ASSERT_TRUE(store.save(SampleState(20).contents()).committed);
  int64_t step = 0;
  EXPECT_EQ(restored(store, step), SampleState(20));
}

// The directory vanishes under a running job: saving fails, training can go on.
TEST(CheckpointStore, ALostDirectoryIsAFailedSaveAndNoMore) {
  const TemporaryDirectory run;
  CheckpointStore store(run.path(), quick_options());
  fs::rename(run.path() / "checkpoints", run.path() / "elsewhere");
  const SaveReport report = store.save(SampleState(10).contents());
  EXPECT_FALSE(report.committed);
  EXPECT_NE(report.failure.find("No such file"), std::string::npos) << report.failure;
  fs::rename(run.path() / "elsewhere", run.path() / "checkpoints");
  EXPECT_TRUE(store.save(SampleState(10).contents()).committed);
}

TEST(CheckpointStore, DoesNotStartASaveThatWillNotFit) {
  const TemporaryDirectory run;
  StoreOptions options = quick_options();
  options.reserve_bytes = int64_t{1} << 60;
  CheckpointStore store(run.path(), options);
  const SaveReport report = store.save(SampleState(10).contents());
  EXPECT_FALSE(report.committed);
  EXPECT_NE(report.failure.find("bytes free, expected"), std::string::npos) << report.failure;
  EXPECT_TRUE(names_in(store.directory()).empty());
}

}  // namespace
}  // namespace tessera
