#include "tests/faults/save_job.h"

#include <array>

#include "checkpoint/shared_save.h"
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

void load(const CheckpointReader& reader, int rank, int ranks, int64_t rows) {
  const int64_t step = reader.facts().id.step;
  SampleState state(0, rank, ranks, rows);
  state.fill(0xA5);
  reader.read(state.groups());
  CHECK(state == SampleState(step, rank, ranks, rows), reader.directory().string(),
        " does not hold the state of step ", step);
  CHECK(reader.read_blob("cursor") == concat("position ", step), reader.directory().string(),
        " has the blob of another step");
}

// One checkpoint, on every rank; rank 0 throws when any of them cannot load it.
void load_together(Communicator& world, const std::string& directory, int64_t rows) {
  const std::optional<Failure> failure = first_failure(
      world,
      failure_of([&] { load(CheckpointReader(directory), world.rank(), world.size(), rows); }));
  if (failure && world.rank() == 0) throw Error(failure->code, to_text(*failure, world));
}

// The newest checkpoint, on every rank, as training does: rank 0 chooses and all load, until one
// of them could be loaded. Returns its step on rank 0.
int64_t resume(Communicator& world, CheckpointStore* store, const SaveJob& job) {
  std::optional<CheckpointId> id;
  if (store != nullptr) {
    id = store->restore([&](const CheckpointReader& reader) {
      load_together(world, broadcast_text(world, reader.directory().string(), 0), job.rows);
    });
    broadcast_text(world, "", 0);  // no more to load
  } else {
    for (std::string directory = broadcast_text(world, "", 0); !directory.empty();
         directory = broadcast_text(world, "", 0)) {
      load_together(world, directory, job.rows);
    }
  }
  return id ? id->step : 0;
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
  if (mine != nullptr) tell({Event::kResumed, first - 1, ""});
  for (int64_t step = first; job.steps == 0 || step < first + job.steps; ++step) {
    const SampleState state(step, world.rank(), world.size(), job.rows);
    const SaveReport report = save_together(world, mine, state.contents());
    if (mine == nullptr) continue;
    tell({report.committed ? Event::kCommitted : Event::kFailed, step, report.failure});
  }
}

int64_t restart(const SaveJob& job) {
  CheckpointStore store(job.run, options_of(job));
  const std::optional<CheckpointId> id =
      store.restore([&](const CheckpointReader& reader) { load(reader, 0, 1, job.rows); });
  return id ? id->step : 0;
}

void expect_right(const std::filesystem::path& checkpoint, int64_t step, int64_t rows) {
  const CheckpointReader reader(checkpoint);
  verify_checkpoint(reader);
  CHECK(reader.facts().id.step == step, checkpoint.string(), " holds step ", reader.facts().id.step,
        ", expected ", step);
  load(reader, 0, 1, rows);
}

}  // namespace tessera::faults
