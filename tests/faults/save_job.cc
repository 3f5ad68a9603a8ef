#include "tests/faults/save_job.h"

#include <array>

#include "checkpoint/saver.h"
#include "checkpoint/shared_load.h"
#include "checkpoint/store.h"
#include "checkpoint/verify.h"
#include "parallel/agreement.h"
#include "tests/checkpoint/sample_run.h"

namespace tessera::faults {

namespace {

using support::SampleState;

StoreOptions options_of(const SaveJob& job) {
  StoreOptions options;
  options.retention.keep_last = job.keep_last;
  options.reserve_bytes = 0;
  if (job.faults.armed()) options.on_stage = job.faults.observer(0);
  return options;
}

void expect_state(const SampleState& found, const CheckpointReader& reader, int rank, int ranks,
                  int64_t rows) {
  const int64_t step = reader.facts().id.step;
  CHECK(found == SampleState(step, rank, ranks, rows), reader.directory().string(),
        " does not hold the state of step ", step);
  CHECK(reader.read_blob("cursor") == concat("position ", step), reader.directory().string(),
        " has the blob of another step");
}

// By one process alone.
void load(const CheckpointReader& reader, int64_t rows) {
  SampleState state(0, 0, 1, rows);
  state.fill(0xA5);
  reader.read(state.groups());
  expect_state(state, reader, 0, 1, rows);
}

// One checkpoint, on every rank; rank 0 throws when any of them cannot load it.
void load_on_all(Communicator& world, const std::string& directory, int64_t rows) {
  std::optional<CheckpointReader> reader;
  std::optional<Failure> failure =
      first_failure(world, failure_of([&] { reader.emplace(directory); }));
  if (!failure) {
    failure = failure_of([&] {
      Stream stream(Device{}, 1);
      SampleState state(0, world.rank(), world.size(), rows);
      state.fill(0xA5);
      load_together(world, stream, *reader, state.groups(), state.groups());
      expect_state(state, *reader, world.rank(), world.size(), rows);
    });
    failure = first_failure(world, failure);
  }
  if (failure && world.rank() == 0) throw Error(failure->code, to_text(*failure, world));
}

// The newest checkpoint, on every rank, as training does: rank 0 chooses and all load, until one
// of them could be loaded. Returns its step on rank 0.
int64_t resume(Communicator& world, CheckpointStore* store, const SaveJob& job) {
  std::optional<CheckpointId> id;
  if (store != nullptr) {
    id = store->restore([&](const CheckpointReader& reader) {
      load_on_all(world, broadcast_text(world, reader.directory().string(), 0), job.rows);
    });
    broadcast_text(world, "", 0);  // no more to load
  } else {
    for (std::string directory = broadcast_text(world, "", 0); !directory.empty();
         directory = broadcast_text(world, "", 0)) {
      load_on_all(world, directory, job.rows);
    }
  }
  return id ? id->step : 0;
}

// In the background, while the state changes: what is saved is that of the beginning.
SaveReport save(Communicator& world, CheckpointSaver& saver, SampleState state) {
  Stream stream(Device{}, 1);
  saver.start(stream, state.contents());
  state.fill(0x5A);
  SaveVotes votes = saver.votes();  // of a step
  world.all_reduce_values(votes);
  if (std::optional<SaveReport> report = saver.advance(votes)) return *report;
  return *saver.finish();
}

}  // namespace

void save_steps(Communicator& world, const SaveJob& job,
                const std::function<void(const Message&)>& tell) {
  std::optional<CheckpointStore> store;
  if (world.rank() == 0) store.emplace(job.run, options_of(job));
  CheckpointStore* mine = store ? &*store : nullptr;
  std::array<double, 1> newest{static_cast<double>(resume(world, mine, job))};
  world.all_reduce_values(newest);
  const int64_t first = static_cast<int64_t>(newest[0]) + 1;
  CheckpointSaver saver(world, mine, {.on_stage = job.faults.observer(world.rank())});
  if (mine != nullptr) tell({Event::kResumed, first - 1, ""});
  for (int64_t step = first; job.steps == 0 || step < first + job.steps; ++step) {
    const SaveReport report =
        save(world, saver, SampleState(step, world.rank(), world.size(), job.rows));
    if (mine == nullptr) continue;
    tell({report.committed ? Event::kCommitted : Event::kFailed, step, report.failure});
  }
}

int64_t restart(const SaveJob& job) {
  CheckpointStore store(job.run, options_of(job));
  const std::optional<CheckpointId> id =
      store.restore([&](const CheckpointReader& reader) { load(reader, job.rows); });
  return id ? id->step : 0;
}

void expect_right(const std::filesystem::path& checkpoint, int64_t step, int64_t rows) {
  const CheckpointReader reader(checkpoint);
  verify_checkpoint(reader);
  CHECK(reader.facts().id.step == step, checkpoint.string(), " holds step ", reader.facts().id.step,
        ", expected ", step);
  load(reader, rows);
}

}  // namespace tessera::faults
