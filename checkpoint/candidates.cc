#include "checkpoint/candidates.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "checkpoint/layout.h"
#include "checkpoint/manifest.h"
#include "checkpoint/marker.h"
#include "checkpoint/reader.h"
#include "kernels/core/log.h"

namespace tessera {

namespace {

constexpr int64_t kMaxHintBytes = 4096;

// Whether an intact marker or manifest says that this program is too old, or too new.
bool is_unsupported(const Directory& directory) {
  try {
    const Marker marker = decode_marker(directory.read(kMarkerName, kMaxHintBytes), kMarkerName);
    if (marker.format_major != kFormatMajor) return true;
    const std::string bytes = directory.read(kManifestName, kMaxManifestBytes);
    return hash128(bytes_of(bytes)) == marker.manifest_hash && is_of_other_format(bytes);
  } catch (const Error&) {
    return false;
  }
}

// Valid ones by (epoch, step); the rest after the valid ones of the same or a higher step.
bool is_newer(const Candidate& a, const Candidate& b) {
  return std::tuple(a.id.epoch, a.id.step, a.path.filename()) >
         std::tuple(b.id.epoch, b.id.step, b.path.filename());
}

// An invalid candidate does not know its epoch: give it that of the nearest valid step, so that
// the list reads as the run went.
void place_invalid(std::vector<Candidate>& candidates) {
  int64_t newest_epoch = 0;
  for (const Candidate& candidate : candidates) {
    if (candidate.state == CandidateState::kValid) {
      newest_epoch = std::max(newest_epoch, candidate.id.epoch);
    }
  }
  for (Candidate& candidate : candidates) {
    if (candidate.id.epoch == 0) candidate.id.epoch = newest_epoch;
  }
}

std::optional<std::filesystem::path> newest_valid(const std::filesystem::path& checkpoints) {
  for (const Candidate& candidate : list_checkpoints(checkpoints)) {
    if (candidate.state == CandidateState::kValid) return candidate.path;
    log_once(concat("passing over ", candidate.path.filename().string(), ": ", candidate.reason));
  }
  return std::nullopt;
}

// What `latest` says, or nothing: whatever is wrong with it, it is only a hint.
std::string hint_in(const std::filesystem::path& checkpoints) {
  try {
    return decode_latest(Directory(checkpoints).read(kLatestName, kMaxHintBytes));
  } catch (const Error&) {
    return {};
  }
}

// A checkpoint that the user calls by its name. Without the incarnation it means the newest valid
// one of the step; what is there and not valid is returned too, for its reader to say why.
std::filesystem::path named_checkpoint(const std::filesystem::path& path) {
  std::error_code ignored;
  const std::filesystem::path parent = path.has_parent_path() ? path.parent_path() : ".";
  for (const Candidate& candidate : list_checkpoints(parent)) {
    if (candidate.state == CandidateState::kValid &&
        candidate.path.filename().string().starts_with(path.filename().string() + ".")) {
      return candidate.path;
    }
  }
  if (std::filesystem::exists(path, ignored)) return path;
  throw Error(ExitCode::kNoCheckpoint, concat("there is no checkpoint ", path.string()));
}

}  // namespace

const char* name_of(CandidateState state) {
  switch (state) {
    case CandidateState::kValid:
      return "valid";
    case CandidateState::kUncommitted:
      return "uncommitted";
    case CandidateState::kDamaged:
      return "damaged";
    case CandidateState::kUnsupported:
      return "unsupported";
    case CandidateState::kUnreadable:
      return "unreadable";
  }
  return "?";
}

Candidate examine_checkpoint(const std::filesystem::path& path) {
  Candidate candidate;
  candidate.path = path;
  const std::optional<int64_t> named = step_of_name(path.filename());
  candidate.id.step = named.value_or(0);
  std::optional<Directory> directory;
  try {
    directory.emplace(path);
    if (!directory->contains(kMarkerName)) {
      candidate.reason = concat("it has no ", kMarkerName, ": a save was cut off or is going on");
      return candidate;
    }
    const CheckpointReader reader(path);
    candidate.id = reader.facts().id;
    candidate.bytes = reader.bytes();
    candidate.finite = reader.facts().finite;
    candidate.state = CandidateState::kValid;
    if (named && *named != candidate.id.step) {
      candidate.state = CandidateState::kDamaged;
      candidate.reason = concat("it holds step ", candidate.id.step);
    }
  } catch (const Error& error) {
    const bool proven = error.code() == ExitCode::kBadData;
    candidate.state = !proven                      ? CandidateState::kUnreadable
                      : is_unsupported(*directory) ? CandidateState::kUnsupported
                                                   : CandidateState::kDamaged;
    candidate.reason = error.what();
  }
  return candidate;
}

std::vector<Candidate> list_checkpoints(const std::filesystem::path& checkpoints) {
  std::vector<Candidate> candidates;
  std::error_code ignored;
  if (!std::filesystem::is_directory(checkpoints, ignored)) return candidates;
  for (const std::string& name : Directory(checkpoints).entries()) {
    if (step_of_name(name)) candidates.push_back(examine_checkpoint(checkpoints / name));
  }
  place_invalid(candidates);
  std::sort(candidates.begin(), candidates.end(), is_newer);
  return candidates;
}

std::filesystem::path checkpoints_directory(const std::filesystem::path& path) {
  std::error_code ignored;
  const std::filesystem::path inner = path / kCheckpointsName;
  return std::filesystem::is_directory(inner, ignored) ? inner : path;
}

std::filesystem::path find_checkpoint(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::exists(path / kMarkerName, ignored)) return path;
  if (step_of_name(path.filename())) return named_checkpoint(path);
  if (std::filesystem::is_regular_file(path, ignored) && path.filename() == kLatestName) {
    const std::filesystem::path parent = path.has_parent_path() ? path.parent_path() : ".";
    const std::string hint = hint_in(parent);
    const std::filesystem::path named = parent / hint;
    if (step_of_name(hint) && examine_checkpoint(named).state == CandidateState::kValid)
      return named;
    return find_checkpoint(parent);
  }
  if (const auto newest = newest_valid(checkpoints_directory(path))) return *newest;
  throw Error(ExitCode::kNoCheckpoint,
              concat("there is no valid checkpoint at ", path.string(),
                     ": give a checkpoint, a run directory or its folder ", kCheckpointsName));
}

}  // namespace tessera
