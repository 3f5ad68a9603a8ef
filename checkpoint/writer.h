#pragma once

#include <cstdint>
#include <functional>

#include "checkpoint/block_file.h"
#include "checkpoint/checkpoint.h"

namespace tessera {

/// Called with the name of each stage of a save that has just been reached.
using StageObserver = std::function<void(const char* stage)>;

/// Bytes of the data file that write_part makes for this writer. Checks the contents: throws when
/// a tensor has not the shape of its box.
int64_t part_bytes(const CheckpointContents& contents, int writer);

/// One rank's share of a save: writes the boxes of all tensors and, for writer 0, the blobs into
/// d/, and says in a part manifest in p/ where they are. All is durable on return. Every rank of a
/// save calls this, in any order, with the same `checkpoint` directory, in which d and p exist;
/// an element that several ranks hold must be in the contents of one of them only. Communicates
/// with nobody, so it may run on a thread of its own.
/// `identity.index` is 0: one file per writer. Throws Error and leaves files behind on trouble.
void write_part(const Directory& checkpoint, const FileIdentity& identity,
                const CheckpointContents& contents, const StageObserver& on_stage);

}  // namespace tessera
