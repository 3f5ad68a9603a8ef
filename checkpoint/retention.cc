#include "checkpoint/retention.h"

#include "checkpoint/layout.h"
#include "kernels/core/log.h"

namespace tessera {

std::vector<bool> expendable(std::span<const CheckpointId> newest_first,
                             const RetentionPolicy& policy) {
  CHECK(policy.keep_last >= 1, "retention: keep_last is ", policy.keep_last,
        ", expected at least 1");
  std::vector<bool> goes(newest_first.size());
  for (size_t i = 0; i < newest_first.size(); ++i) {
    const bool recent = static_cast<int64_t>(i) < policy.keep_last;
    const bool milestone = policy.keep_every > 0 && newest_first[i].step % policy.keep_every == 0;
    goes[i] = !recent && !milestone;
  }
  return goes;
}

void move_checkpoint(const Directory& checkpoints, const std::string& name, const char* folder) {
  if (checkpoints.make_directory(folder)) checkpoints.sync();
  const Directory target = checkpoints.subdirectory(folder);
  std::string free_name = name;
  for (int attempt = 1; target.contains(free_name); ++attempt) {
    free_name = concat(name, ".", attempt);
  }
  checkpoints.rename(name, concat(folder, "/", free_name));
  target.sync();
  checkpoints.sync();
}

void delete_checkpoint(const Directory& checkpoints, const std::string& name) {
  move_checkpoint(checkpoints, name, kTrashName);
  empty_trash(checkpoints);
}

void empty_trash(const Directory& checkpoints) {
  try {
    if (!checkpoints.contains(kTrashName)) return;
    const Directory trash = checkpoints.subdirectory(kTrashName);
    for (const std::string& name : trash.entries()) trash.remove(name);
  } catch (const Error& error) {
    log_line(concat("warning: space is not given back yet: ", error.what()));
  }
}

}  // namespace tessera
