#pragma once

#include <string>

#include "checkpoint/commit.h"
#include "checkpoint/layout.h"
#include "checkpoint/writer.h"
#include "tests/checkpoint/sample_run.h"

namespace tessera::support {

/// SampleState(step) saved by `writers` ranks, each with its own block of every tensor, into
/// `place`/checkpoints/step-NNNNNNNN. Returns the checkpoint.
inline std::filesystem::path save_with(int writers, int64_t step,
                                       const std::filesystem::path& place) {
  make_directories(place / kCheckpointsName);
  const Directory checkpoints(place / kCheckpointsName);
  const Fence fence = raise_fence(checkpoints, 0, "", "");
  const std::string name = checkpoint_name(step);
  checkpoints.make_directory(name);
  const Directory checkpoint = checkpoints.subdirectory(name);
  checkpoint.make_directory(kDataName);
  checkpoint.make_directory(kPartsName);
  const auto ignore = [](const char*) {};
  CheckpointContents contents;
  for (int writer = writers - 1; writer >= 0; --writer) {  // in any order
    const SampleState state(step, writer, writers);
    contents = state.contents();
    FileIdentity identity;
    identity.run_uuid = fence.run_uuid;
    identity.epoch = fence.epoch;
    identity.step = step;
    identity.writer = writer;
    write_part(checkpoint, identity, contents, ignore);
  }
  CommitRequest request;
  request.name = name;
  request.fence = fence;
  request.writers = writers;
  contents.groups.clear();  // they point to the state of the last writer, which is gone
  commit(checkpoints, checkpoint, request, contents, ignore);
  return checkpoints.path() / name;
}

}  // namespace tessera::support
