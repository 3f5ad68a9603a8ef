#include "checkpoint/shared_save.h"

#include "checkpoint/saver.h"

namespace tessera {

SaveReport save_together(Communicator& ranks, CheckpointStore* store,
                         const CheckpointContents& contents) {
  CheckpointSaver saver(ranks, store, {.background = false});
  ThreadPool own_thread(1);
  saver.start(own_thread, contents);
  return *saver.finish();
}

}  // namespace tessera
