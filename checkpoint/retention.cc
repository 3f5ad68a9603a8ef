#include "checkpoint/retention.h"

#include "checkpoint/layout.h"
#include "kernels/core/log.h"

namespace tessera {

std::vector<bool> expendable(std::span<const Kept> newest_first, const RetentionPolicy& policy) {
  CHECK(policy.keep_last >= 1, "retention: keep_last is ", policy.keep_last,
        ", expected at least 1");
  std::vector<bool> goes(newest_first.size());
  bool finite_kept = false;
  for (size_t i = 0; i < newest_first.size(); ++i) {
    const bool recent = static_cast<int64_t>(i) < policy.keep_last;
    const Kept& one = newest_first[i];
    const bool milestone = policy.keep_every > 0 && one.id.step % policy.keep_every == 0;
    const bool last_finite = one.finite && !finite_kept;
    finite_kept = finite_kept || one.finite;
    goes[i] = !recent && !milestone && !last_finite;
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
