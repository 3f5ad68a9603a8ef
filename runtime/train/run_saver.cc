#include "runtime/train/run_saver.h"

#include <chrono>
#include <cmath>
#include <functional>
#include <iomanip>
#include <sstream>
#include <utility>

#include "checkpoint/state_digest.h"
#include "kernels/core/log.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/replica_check.h"

namespace tessera {

namespace {

bool is_multiple(int64_t step, int64_t every) {
  return every > 0 && step % every == 0;
}

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::string milliseconds(double seconds) {
  return concat(std::lround(1000 * seconds), " ms");
}

std::string describe(const SaveReport& report) {
  std::ostringstream out;
  out << "saved " << report.path.string() << ": " << std::fixed << std::setprecision(1)
      << static_cast<double>(report.bytes) / (1 << 20) << " MiB, written in "
      << milliseconds(report.write_seconds) << " (" << std::setprecision(2)
      << static_cast<double>(report.bytes) / 1e9 / report.write_seconds << " GB/s), committed in "
      << milliseconds(report.commit_seconds) << "; training waited "
      << milliseconds(report.stall_seconds);
  return out.str();
}

}  // namespace

bool saves_in_background(const TrainConfig& config) {
  return config.checkpoint().background() && config.checkpoint().every() > 0;
}

RunSaver::RunSaver(const Parts& parts)
    : parts_(parts),
      saver_(parts.mesh.world(), parts.checkpoints,
             {.background = saves_in_background(parts.config), .on_stage = parts.on_stage}),
      saved_step_(parts.state.progress.step) {
  saver_.reserve(parts_.stream, describe_state(parts_.mesh, parts_.state, parts_.config).contents);
}

void RunSaver::note(const std::optional<SaveReport>& report, int64_t step) {
  if (!report) return;
  if (report->committed) saved_step_ = step;
  if (parts_.checkpoints == nullptr) return;
  log_line(report->committed ? describe(*report)
                             : concat("warning: step ", step,
                                      " is not saved, training goes on: ", report->failure));
}

void RunSaver::after_step(const SaveVotes& sums, bool due) {
  if (saver_.busy()) {
    const int64_t saving = saver_.step();
    note(saver_.advance(sums), saving);
    if (saver_.busy() && saving + 1 == step()) {
      saver_.charge(seconds_of([&] { saver_.set_next_step_digest(share_of_digest()); }));
    }
  }
  prove_resume();
  CollectiveLog& log = parts_.mesh.world().log();
  double checked = 0;
  if (due) log.set_phase(Phase::kCheckpoint);
  if (due || is_multiple(step(), parts_.config.checkpoint().check_replicas())) {
    checked = check_replicas_now();
  }
  if (!due) return;
  begin_save(checked);
  log.set_phase(Phase::kBetweenSteps);
}

void RunSaver::begin_save(double spent) {
  // What is to stay for ever is worth waiting for.
  if (is_multiple(step(), parts_.config.checkpoint().keep_every())) wait();
  if (saver_.busy()) {
    log_once(concat("warning: step ", step(), " is not saved: step ", saver_.step(),
                    " is still being written; checkpoint.every is too short for this storage"));
  }
  const StateContents state = describe_state(parts_.mesh, parts_.state, parts_.config);
  if (!saver_.start(parts_.stream, state.contents)) return;
  saver_.charge(spent);
  if (!background()) wait();
}

void RunSaver::wait() {
  if (!saver_.busy()) return;
  const int64_t saving = saver_.step();
  note(saver_.finish(), saving);
}

void RunSaver::finish() {
  wait();
  if (saved_step_ == step()) return;
  const double checked = check_replicas_now();
  const StateContents state = describe_state(parts_.mesh, parts_.state, parts_.config);
  saver_.start(parts_.stream, state.contents);
  saver_.charge(checked);
  const SaveReport report = *saver_.finish();
  if (!report.committed) {
    throw Error(ExitCode::kTryAgain,
                concat("the state after step ", step(), " could not be saved: ", report.failure,
                       "; checkpoints of earlier steps are intact, and the run goes on from the "
                       "newest when it is started again"));
  }
  note(report, step());
}

// Returns the seconds that it took.
double RunSaver::check_replicas_now() const {
  return seconds_of([&] {
    parts_.exchange.finish_gathers();
    check_replicas(parts_.stream, parts_.mesh, parts_.state.store,
                   to_text(parts_.state.progress) + parts_.state.guard.state());
  });
}

uint64_t RunSaver::share_of_digest() const {
  return state_digest(parts_.stream, parts_.state.optimizer.owned().values);
}

// Once, after the first step of a resumed run.
void RunSaver::prove_resume() {
  const std::optional<ResumeProof> proof = std::exchange(parts_.state.proof, std::nullopt);
  if (!proof || proof->step != step()) return;
  uint64_t digest = share_of_digest();
  sum_digests(parts_.mesh.world(), {&digest, 1});
  if (digest == proof->digest) {
    log_once(concat("step ", step(),
                    " is bit-exact: its parameters are those of the run that saved step ",
                    step() - 1));
  } else if (proof->same_mesh && proof->same_config) {
    log_once(concat(
        "warning: step ", step(),
        " is NOT bit-exact: its parameters differ from those of the "
        "run that saved step ",
        step() - 1,
        " on the same mesh, from the same configuration: another program or processor, or silent "
        "corruption"));
  } else {
    log_once(concat("step ", step(), " differs in bits from that of the run that saved step ",
                    step() - 1, ", as expected: the ", proof->same_mesh ? "configuration" : "mesh",
                    " is another one"));
  }
}

}  // namespace tessera
