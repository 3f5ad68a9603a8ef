#include "checkpoint/fence.h"

#include <algorithm>
#include <random>
#include <sstream>

#include "checkpoint/layout.h"

namespace tessera {

namespace {

constexpr int64_t kMaxFenceBytes = 4096;

// The epochs that have a fence, ascending.
std::vector<int64_t> epochs_of(const Directory& fences) {
  std::vector<int64_t> epochs;
  for (const std::string& name : fences.entries()) {
    if (const std::optional<int64_t> epoch = epoch_of_name(name)) epochs.push_back(*epoch);
  }
  std::sort(epochs.begin(), epochs.end());
  return epochs;
}

std::string new_uuid() {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::random_device random;
  std::string uuid;
  for (int i = 0; i < 32; ++i) uuid += kDigits[random() % 16];
  return uuid;
}

bool is_uuid(const std::string& text) {
  return text.size() == 32 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// A fence whose writer was killed may be empty: then an older one knows the run.
std::string uuid_of(const Directory& fences, const std::vector<int64_t>& epochs) {
  for (auto epoch = epochs.rbegin(); epoch != epochs.rend(); ++epoch) {
    std::istringstream words(fences.read(epoch_name(*epoch), kMaxFenceBytes));
    std::string key;
    std::string uuid;
    if (words >> key >> uuid && key == "run" && is_uuid(uuid)) return uuid;
  }
  return {};
}

}  // namespace

Fence raise_fence(const Directory& checkpoints, int64_t newest_epoch,
                  const std::string& fallback_uuid, const std::string& note) {
  if (checkpoints.make_directory(kFenceName)) checkpoints.sync();
  const Directory fences = checkpoints.subdirectory(kFenceName);
  Fence fence;
  while (true) {
    const std::vector<int64_t> epochs = epochs_of(fences);
    fence.epoch = std::max(newest_epoch, epochs.empty() ? 0 : epochs.back()) + 1;
    fence.run_uuid = uuid_of(fences, epochs);
    if (fence.run_uuid.empty())
      fence.run_uuid = is_uuid(fallback_uuid) ? fallback_uuid : new_uuid();
    const std::string name = epoch_name(fence.epoch);
    const std::string content = concat("run ", fence.run_uuid, "\n", note.substr(0, 1024), "\n");
    try {
      fences.write_new(name, content);
      break;
    } catch (const Error&) {
      // Another job was faster: the next number is ours. Anything else is real trouble.
      const std::vector<int64_t> now = epochs_of(fences);
      if (now.empty() || now.back() < fence.epoch) throw;
    }
  }
  fences.sync();
  return fence;
}

std::optional<int64_t> newer_incarnation(const Directory& checkpoints, const Fence& fence) {
  const std::vector<int64_t> epochs = epochs_of(checkpoints.subdirectory(kFenceName));
  if (epochs.empty() || epochs.back() <= fence.epoch) return std::nullopt;
  return epochs.back();
}

void check_fence(const Directory& checkpoints, const Fence& fence) {
  if (const std::optional<int64_t> newer = newer_incarnation(checkpoints, fence)) {
    throw Error(ExitCode::kTryAgain,
                concat("incarnation ", fence.epoch, " of this run was replaced by incarnation ",
                       *newer, " in ", checkpoints.path().string(),
                       ": another job writes here; this one stops without committing"));
  }
}

}  // namespace tessera
