#include "kernels/core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/core/error.h"

namespace tessera {

namespace {

// A training step is many short loops: a worker that spins this long between two of them saves
// a wake-up of about 50 us, and one that finds nothing goes to sleep and frees its core.
constexpr int kSpins = 4000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

struct ThreadPool::Shared {
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;
  std::atomic<uint64_t> loop{0};  // number of the loop to work on
  std::atomic<int> busy{0};       // workers that have not finished the current loop
  std::atomic<int64_t> next{0};
  int64_t tasks = 0;
  const std::function<void(int64_t)>* task = nullptr;
  bool stop = false;
  std::exception_ptr failure;

  void work() {
    for (int64_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1)) {
      try {
        (*task)(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (failure == nullptr) failure = std::current_exception();
        next.store(tasks);
      }
    }
  }

  void run_worker() {
    uint64_t seen = 0;
    while (true) {
      for (int spin = 0; spin < kSpins && loop.load() == seen; ++spin) pause();
      if (loop.load() == seen) {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return loop.load() != seen; });
      }
      seen = loop.load();
      if (stop) return;
      work();
      busy.fetch_sub(1);
    }
  }
};

ThreadPool::ThreadPool(int threads) : threads_(threads), shared_(std::make_unique<Shared>()) {
  CHECK(threads >= 1, "thread pool: threads is ", threads, ", expected at least 1");
  for (int i = 1; i < threads; ++i) {
    shared_->workers.emplace_back([shared = shared_.get()] { shared->run_worker(); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->stop = true;
    shared_->loop.fetch_add(1);
  }
  shared_->wake.notify_all();
  for (std::thread& worker : shared_->workers) worker.join();
}

void ThreadPool::for_each(int64_t tasks, const std::function<void(int64_t)>& task) {
  if (threads_ == 1 || tasks <= 1) {
    for (int64_t i = 0; i < tasks; ++i) task(i);
    return;
  }
  Shared& shared = *shared_;
  {
    const std::lock_guard lock(shared.mutex);
    shared.tasks = tasks;
    shared.task = &task;
    shared.failure = nullptr;
    shared.next.store(0);
    shared.busy.store(threads_ - 1);
    shared.loop.fetch_add(1);
  }
  shared.wake.notify_all();
  shared.work();
  for (int spin = 0; shared.busy.load() != 0; ++spin) {
    if (spin < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
  if (shared.failure != nullptr) std::rethrow_exception(shared.failure);
}

void ThreadPool::for_ranges(int64_t count, int64_t grain,
                            const std::function<void(int64_t, int64_t)>& body) {
  for_each((count + grain - 1) / grain,
           [&](int64_t i) { body(i * grain, std::min(count, (i + 1) * grain)); });
}

}  // namespace tessera
