#pragma once

#include "checkpoint/saver.h"

namespace tessera::support {

/// A save by all ranks that is over, one way or the other, when it returns. `store` is rank 0's,
/// nullptr elsewhere.
inline SaveReport save_together(Communicator& ranks, CheckpointStore* store,
                                const CheckpointContents& contents) {
  CheckpointSaver saver(ranks, store, {.background = false});
  Stream stream(Device{}, 1);
  saver.start(stream, contents);
  return *saver.finish();
}

}  // namespace tessera::support
