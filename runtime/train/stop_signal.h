#pragma once

#include <atomic>
#include <thread>

namespace tessera {

/// Turns SIGINT, SIGTERM and SIGUSR1 into a request to stop after the current step. One thread
/// waits for them; nothing runs in signal context. A second signal leaves at once with exit code
/// 75: checkpoints are complete or not there, so nothing is lost.
class StopSignal {
 public:
  /// Blocks the signals in this thread and in all that it starts later: make it before other
  /// threads, MPI's among them. Rank 0 of `ranks` says that it was heard; the others, which a
  /// launcher may signal as well, are quiet.
  explicit StopSignal(int rank = 0, int ranks = 1);
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  bool requested() const { return requested_.load(); }

 private:
  void wait(int rank, int ranks);

  std::atomic<bool> requested_{false};
  std::atomic<bool> leaving_{false};
  std::thread thread_;
};

}  // namespace tessera
