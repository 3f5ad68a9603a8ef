#include "kernels/core/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t tasks : {int64_t{0}, int64_t{1}, int64_t{3}, int64_t{1000}}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      pool.for_each(tasks, [&](int64_t i) { ++runs[static_cast<size_t>(i)]; });
      for (const auto& count : runs) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ThreadPool, WorkIsDoneWhenItReturns) {
  ThreadPool pool(3);
  // Plain numbers: tsan sees it when a loop returns too early or starts too late.
  std::vector<int64_t> values(8);
  for (int64_t loop = 0; loop < 3000; ++loop) {
    pool.for_each(8, [&](int64_t i) { values[static_cast<size_t>(i)] += i; });
  }
  for (size_t i = 0; i < 8; ++i) EXPECT_EQ(values[i], 3000 * static_cast<int64_t>(i));
}

TEST(ThreadPool, RangesCoverTheCountAndKeepToTheGrain) {
  ThreadPool pool(2);
  for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{63}, int64_t{64}, int64_t{65}}) {
    std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
    pool.for_ranges(count, 16, [&](int64_t begin, int64_t end) {
      EXPECT_EQ(begin % 16, 0);
      EXPECT_LE(end - begin, 16);
      for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
    });
    for (const auto& times : seen) EXPECT_EQ(times, 1);
  }
}

TEST(ThreadPool, AnExceptionOfATaskArrivesAndThePoolStaysUsable) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    for (int attempt = 0; attempt < 20; ++attempt) {
      EXPECT_THROW(pool.for_each(50,
                                 [](int64_t i) {
                                   if (i == 30) throw std::runtime_error("task 30");
                                 }),
                   std::runtime_error);
      std::atomic<int64_t> sum{0};
      pool.for_each(10, [&](int64_t i) { sum += i; });
      EXPECT_EQ(sum, 45);
    }
  }
}

TEST(ThreadPool, UsesItsThreads) {
  ThreadPool pool(2);
  std::atomic<int> inside{0};
  // Each of the two tasks waits for the other: only two threads can finish this.
  pool.for_each(2, [&](int64_t) {
    inside.fetch_add(1);
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (inside.load() < 2 && std::chrono::steady_clock::now() < until) std::this_thread::yield();
    EXPECT_EQ(inside.load(), 2);
  });
}

TEST(ThreadPool, WakesUpAfterALongPause) {
  ThreadPool pool(3);
  for (int loop = 0; loop < 3; ++loop) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> runs{0};
    pool.for_each(10, [&](int64_t) { runs.fetch_add(1); });
    EXPECT_EQ(runs.load(), 10);
  }
}

TEST(ThreadPool, NeedsAThread) {
  support::expect_error([] { ThreadPool(0); }, "thread pool: threads is 0, expected at least 1");
}

}  // namespace
}  // namespace tessera
