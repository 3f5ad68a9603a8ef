#include "tests/faults/save_job.h"

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

// The newest checkpoint, on every rank: chosen by rank 0, read by all.
int64_t resume(Communicator& world, CheckpointStore* store, const SaveJob& job) {
  std::string chosen;
  if (store != nullptr) {
    (void)store->restore([&](const CheckpointReader& reader) {
      load(reader, 0, world.size(), job.rows);
      chosen = reader.directory().string();
    });
  }
  chosen = broadcast_text(world, chosen, 0);
  if (chosen.empty()) return 0;
  const CheckpointReader reader(chosen);
  if (world.rank() > 0) load(reader, world.rank(), world.size(), job.rows);
  return reader.facts().id.step;
}

}  // namespace

void save_steps(Communicator& world, const SaveJob& job,
                const std::function<void(const Message&)>& tell) {
  std::optional<CheckpointStore> store;
  if (world.rank() == 0) store.emplace(job.run, options_of(job));
  CheckpointStore* mine = store ? &*store : nullptr;
  const int64_t first = resume(world, mine, job) + 1;
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
