#include "checkpoint/store.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "checkpoint/commit.h"
#include "checkpoint/layout.h"
#include "checkpoint/verify.h"
#include "checkpoint/writer.h"
#include "kernels/core/log.h"
#include "parallel/agreement.h"

namespace tessera {

namespace {

std::filesystem::path prepared(const std::filesystem::path& run_directory) {
  const std::filesystem::path checkpoints = run_directory / kCheckpointsName;
  make_directories(checkpoints);
  return checkpoints;
}

Fence next_incarnation(const Directory& checkpoints, const std::string& note) {
  int64_t newest_epoch = 0;
  std::string run_uuid;
  for (const Candidate& candidate : list_checkpoints(checkpoints.path())) {
    if (candidate.state != CandidateState::kValid || candidate.id.epoch <= newest_epoch) continue;
    newest_epoch = candidate.id.epoch;
    try {
      run_uuid = CheckpointReader(candidate.path).facts().run_uuid;
    } catch (const Error&) {
      // An older job that does not know of us yet has just deleted it.
    }
  }
  return raise_fence(checkpoints, newest_epoch, run_uuid, note);
}

bool is_cut_off(const Directory& checkpoints, const std::string& name) {
  return step_of_name(name) &&
         examine_checkpoint(checkpoints.path() / name).state == CandidateState::kUncommitted;
}

// Renamed away before they are unlinked, as everything that is deleted.
void clear_leftovers(const Directory& checkpoints, int64_t epoch) {
  for (const std::string& name : checkpoints.entries()) {
    const std::optional<int64_t> unnamed = epoch_of_new_name(name);
    if (!(unnamed && *unnamed < epoch) && !is_cut_off(checkpoints, name)) continue;
    try {
      move_checkpoint(checkpoints, name, kTrashName);
      log_once(concat("clearing away ", name, ": an earlier save of it was cut off"));
    } catch (const Error&) {
      if (checkpoints.contains(name)) throw;  // else its own job has given it up
    }
  }
  empty_trash(checkpoints);
}

void check_space(const Directory& checkpoints, int64_t bytes, int64_t reserve) {
  const int64_t needed = bytes + bytes / 10 + reserve;
  const int64_t free = checkpoints.free_bytes();
  if (free < needed) {
    throw Error(ExitCode::kTryAgain,
                concat("the file system of ", checkpoints.path().string(), " has ", free,
                       " bytes free, expected ", needed, ": make room or lower keep_last"));
  }
}

// A new directory, opened under a name that no other incarnation uses. Under that of a checkpoint a
// newer one may clear it away and make its own at any moment, which must not be taken for ours.
Directory make_unnamed(const Directory& checkpoints, const std::string& name) {
  if (checkpoints.contains(name)) checkpoints.remove(name);  // of a save that failed
  checkpoints.make_directory(name);
  try {
    return checkpoints.subdirectory(name);
  } catch (const Error&) {
    checkpoints.remove_empty_directory(name);
    throw;
  }
}

// Gives the directory `made` a name of the step: the plain one when it is free, else one with the
// incarnation. Renaming does not replace a directory that holds something, and all of ours do from
// before they have a name.
std::string claim_name(const Directory& checkpoints, const std::string& made, int64_t step,
                       int64_t epoch) {
  for (const std::string& name : {checkpoint_name(step), checkpoint_name(step, epoch)}) {
    if (checkpoints.rename_to_free(made, name)) return name;
  }
  throw Error(ExitCode::kTryAgain, concat(checkpoints.path().string(), "/",
                                          checkpoint_name(step, epoch), " exists already"));
}

// Gives back the space of a save that failed. Only what this save itself has made is touched:
// files through the descriptor, the name only when it is empty.
void discard(const Directory& checkpoints, const Directory& checkpoint, const std::string& name) {
  try {
    if (checkpoint.contains(kMarkerName)) return;
    for (const std::string& entry : checkpoint.entries()) checkpoint.remove(entry);
    checkpoints.remove_empty_directory(name);
  } catch (const Error& error) {
    log_line(concat("warning: the next start clears away ", name, ": ", error.what()));
  }
}

// Damage that a full check proves, or nothing.
std::optional<std::string> damage_of(const std::filesystem::path& checkpoint) {
  try {
    verify_checkpoint(CheckpointReader(checkpoint));
    return std::nullopt;
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadData) throw;
    return error.what();
  }
}

}  // namespace

Directory open_checkpoint(const SaveTicket& ticket) {
  Directory directory(ticket.directory);
  if (!directory.contains(concat(kPartsName, "/", epoch_name(ticket.identity.epoch)))) {
    throw Error(ExitCode::kTryAgain,
                concat(ticket.directory.string(), " is not that of incarnation ",
                       ticket.identity.epoch, " any more: a newer one has started"));
  }
  return directory;
}

CheckpointStore::CheckpointStore(const std::filesystem::path& run_directory, StoreOptions options)
    : directory_(prepared(run_directory)), options_(std::move(options)) {
  CHECK(options_.retention.keep_last >= 1, "checkpoint.keep_last is ", options_.retention.keep_last,
        ", expected at least 1");
  const Directory checkpoints(directory_);
  fence_ = next_incarnation(checkpoints, options_.note);
  // After the fence: what an older incarnation commits from now on it does not acknowledge.
  clear_leftovers(checkpoints, fence_.epoch);
}

void CheckpointStore::stage(const char* name) const {
  if (options_.on_stage) options_.on_stage(name);
}

void CheckpointStore::quarantine(const Candidate& candidate) {
  log_once(concat("warning: ", candidate.path.filename().string(), " is damaged and goes to ",
                  kBadName, ": ", candidate.reason));
  move_checkpoint(Directory(directory_), candidate.path.filename(), kBadName);
}

std::optional<CheckpointId> CheckpointStore::restore(
    const std::function<void(const CheckpointReader&)>& load) {
  const Directory checkpoints(directory_);
  while (true) {
    const std::vector<std::string> before = checkpoints.entries();
    try {
      return restore_newest(load);
    } catch (const Error&) {
      if (is_replaced()) check_fence(checkpoints, fence_);  // throws
      // An older job that does not know of us yet deletes what its retention lets go. It ends at
      // its next commit, so this does too.
      if (checkpoints.entries() == before) throw;
    }
  }
}

std::optional<CheckpointId> CheckpointStore::restore_newest(
    const std::function<void(const CheckpointReader&)>& load) {
  bool found_any = false;
  for (Candidate& candidate : list()) {
    if (candidate.state == CandidateState::kUncommitted) continue;
    found_any = true;
    if (candidate.state == CandidateState::kUnsupported) {
      throw Error(ExitCode::kBadData, candidate.reason);
    }
    if (candidate.state == CandidateState::kUnreadable) {
      // It may be the newest: to go on from an older one would abandon what was acknowledged.
      throw Error(ExitCode::kTryAgain,
                  concat(candidate.path.string(), " cannot be read: ", candidate.reason,
                         ": run again, or move it away to go on from an older checkpoint"));
    }
    if (candidate.state == CandidateState::kValid) {
      try {
        const CheckpointId id = restore_from(candidate.path, load);
        last_.emplace();
        last_->committed = true;
        last_->path = candidate.path;
        last_->bytes = candidate.bytes;
        return id;
      } catch (const Error& error) {
        if (error.code() != ExitCode::kBadData) throw;
        const std::optional<std::string> damage = damage_of(candidate.path);
        if (!damage) throw;
        candidate.reason = *damage;
      }
    }
    quarantine(candidate);
  }
  const Directory checkpoints(directory_);
  found_any = found_any || (checkpoints.contains(kBadName) &&
                            !checkpoints.subdirectory(kBadName).entries().empty());
  if (found_any) {
    throw Error(ExitCode::kNoCheckpoint,
                concat("no checkpoint in ", directory_.string(), " is valid any more (see ",
                       kBadName, "): start afresh with --resume none or another run directory"));
  }
  return std::nullopt;
}

CheckpointId CheckpointStore::restore_from(
    const std::filesystem::path& checkpoint,
    const std::function<void(const CheckpointReader&)>& load) {
  const CheckpointReader reader(checkpoint);
  load(reader);
  last_.reset();
  parent_ = reader.facts().id;
  return parent_;
}

SaveReport CheckpointStore::save(const CheckpointContents& contents) {
  std::optional<Failure> failure;
  if (begin(contents.step, part_bytes(contents, 0))) failure = write(contents);
  return finish(contents, 1, failure);
}

std::optional<SaveTicket> CheckpointStore::begin(int64_t step, int64_t bytes) {
  open_ = {};
  if (last_ && parent_.step == step) {
    open_.report = *last_;
    return std::nullopt;
  }
  open_.report.bytes = bytes;
  try {
    open_directory(step);
  } catch (const Error& error) {
    // A broken contract is the caller's, a lost fence ends the run; all else is the storage's.
    if (error.code() == ExitCode::kError) throw;
    if (is_replaced()) check_fence(Directory(directory_), fence_);  // throws
    open_.report.failure = without_rank(error.what());
    return std::nullopt;
  }
  return SaveTicket{.directory = open_.report.path,
                    .identity = {.run_uuid = fence_.run_uuid, .epoch = fence_.epoch, .step = step}};
}

void CheckpointStore::open_directory(int64_t step) {
  open_.checkpoints = Directory(directory_);
  const Directory& checkpoints = open_.checkpoints;
  check_fence(checkpoints, fence_);
  check_space(checkpoints, open_.report.bytes, options_.reserve_bytes);
  open_.name = new_name(fence_.epoch);
  open_.directory = make_unnamed(checkpoints, open_.name);
  try {
    open_.directory.make_directory(kDataName);
    open_.directory.make_directory(kPartsName);
    open_.directory.make_directory(concat(kPartsName, "/", epoch_name(fence_.epoch)));
    open_.name = claim_name(checkpoints, open_.name, step, fence_.epoch);
  } catch (const Error&) {
    discard(checkpoints, open_.directory, open_.name);
    throw;
  }
  open_.report.path = directory_ / open_.name;
  open_.begun = true;
  stage("directory made");
}

std::optional<Failure> CheckpointStore::write(const CheckpointContents& contents) {
  return failure_of([&] {
    write_part(open_.directory,
               {.run_uuid = fence_.run_uuid, .epoch = fence_.epoch, .step = contents.step},
               contents, [this](const char* reached) { stage(reached); });
  });
}

SaveReport CheckpointStore::finish(const CheckpointContents& contents, int writers,
                                   const std::optional<Failure>& failure) {
  OpenSave save = std::exchange(open_, {});
  SaveReport& report = save.report;
  if (!save.begun) return report;
  const auto start = std::chrono::steady_clock::now();
  std::optional<Failure> trouble = failure;
  if (!trouble) trouble = failure_of([&] { commit_parts(save, contents, writers); });
  report.commit_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (trouble) {
    discard(save.checkpoints, save.directory, save.name);
    if (is_replaced()) check_fence(save.checkpoints, fence_);  // throws
    report.failure = trouble->reason;
    return report;
  }
  report.committed = true;
  parent_ = {fence_.epoch, contents.step};
  last_ = report;
  retire();
  return report;
}

void CheckpointStore::commit_parts(OpenSave& save, const CheckpointContents& contents,
                                   int writers) const {
  const CommitFacts facts = commit(save.checkpoints, save.directory,
                                   {.name = save.name,
                                    .fence = fence_,
                                    .parent = parent_,
                                    .git_hash = options_.git_hash,
                                    .writers = writers},
                                   contents, [this](const char* reached) { stage(reached); });
  save.report.write_seconds = facts.write_seconds;
}

bool CheckpointStore::is_replaced() const {
  try {
    return newer_incarnation(Directory(directory_), fence_).has_value();
  } catch (const Error&) {
    return false;  // the storage does not answer: that is for the next save to find out
  }
}

void CheckpointStore::retire() {
  try {
    std::vector<Kept> valid;
    std::vector<std::string> names;
    for (const Candidate& candidate : list()) {
      if (candidate.state != CandidateState::kValid) continue;
      valid.push_back({candidate.id, candidate.finite});
      names.push_back(candidate.path.filename());
    }
    const std::vector<bool> goes = expendable(valid, options_.retention);
    for (size_t i = 0; i < names.size(); ++i) {
      if (!goes[i]) continue;
      const Directory checkpoints(directory_);
      stage("before a deletion");
      move_checkpoint(checkpoints, names[i], kTrashName);
      stage("trash renamed");
      empty_trash(checkpoints);
    }
  } catch (const Error& error) {
    log_line(concat("warning: old checkpoints stay for now: ", error.what()));
  }
}

}  // namespace tessera
