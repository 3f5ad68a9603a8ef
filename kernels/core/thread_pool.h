#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace tessera {

/// A fixed set of threads that share the iterations of CPU loops.
/// The work is cut into tasks by its shape alone, never by the number of threads, and no two
/// tasks write the same element: so results do not depend on the number of threads.
class ThreadPool {
 public:
  /// `threads` >= 1 counts the caller, which works too; 1 starts no thread.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  /// Calls task(i) once for every i in [0, tasks), in any order and on any thread of the pool,
  /// and returns when all are done. The first exception of a task is thrown here.
  /// Not re-entrant: a task must not start another loop on the same pool.
  void for_each(int64_t tasks, const std::function<void(int64_t)>& task);

  /// As for_each, over [begin, end) ranges of at most `grain` consecutive indices of [0, count).
  void for_ranges(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

 private:
  struct Shared;
  int threads_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace tessera
