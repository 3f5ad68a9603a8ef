#pragma once

#include "checkpoint/store.h"
#include "parallel/communicator.h"

namespace tessera {

/// A save by all ranks of `ranks`: each writes the boxes of tensors in its own `contents`, rank 0
/// also the blobs, and rank 0 commits when all parts are durable. Collective; nobody returns before
/// the checkpoint is committed or given up. `store` is rank 0's, nullptr elsewhere; all ranks see
/// the same file system. Steps, counts and blobs of `contents` are rank 0's.
///
/// When any rank fails to write, the save fails on all, as in CheckpointStore::save, and the report
/// of rank 0 says which rank and why. The other ranks' reports have nothing but `committed`.
/// Throws kTryAgain on every rank when a newer incarnation has taken over.
SaveReport save_together(Communicator& ranks, CheckpointStore* store,
                         const CheckpointContents& contents);

}  // namespace tessera
