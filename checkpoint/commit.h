#pragma once

#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/fence.h"
#include "checkpoint/file_io.h"
#include "checkpoint/writer.h"

namespace tessera {

namespace wire {
class Manifest;
class Part;
}  // namespace wire

/// What rank 0 knows of a save besides the parts.
struct CommitRequest {
  std::string name;  ///< of the checkpoint's directory
  Fence fence;
  CheckpointId parent;
  std::string git_hash;
  int writers = 1;  ///< parts to merge: of writers 0 to writers - 1
};

struct CommitFacts {
  double write_seconds = 0;  ///< of the writer that took longest
};

/// Makes a checkpoint of what the writers have left in `checkpoint`, the open directory `name` of
/// `checkpoints`. Called by one rank, after write_part has returned on all. Merges the parts, so
/// that every element of every tensor is in exactly one slice, and writes in this order, each step
/// durable before the next: MANIFEST.pb; no more parts; COMMITTED; `latest`. Before COMMITTED and
/// after it the fence is checked: a commit that returns was made before any newer incarnation
/// began, and every newer one sees it. Throws kTryAgain when fenced off.
CommitFacts commit(const Directory& checkpoints, const Directory& checkpoint,
                   const CommitRequest& request, const CheckpointContents& contents,
                   const StageObserver& on_stage);

/// Adds the files, tensors and blobs of all parts to `manifest`, tensors of the same kind and name
/// as one. Throws kBadData when parts disagree about a tensor.
void merge_parts(const std::vector<wire::Part>& parts, wire::Manifest& manifest);

}  // namespace tessera
