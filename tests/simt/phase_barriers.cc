#include "tests/simt/phase_barriers.h"

#include <array>
#include <deque>
#include <utility>

#include "kernels/core/error.h"
#include "tests/simt/block_runner.h"
#include "tests/simt/lane_clocks.h"
#include "tests/simt/memory_checks.h"
#include "tests/simt/shared_checks.h"

namespace tessera::simt {
namespace {

constexpr uint64_t kMark = 0x5AFE'BA22'0000'0000;  // with the number: what the word holds
constexpr size_t kNamed = 16;

struct PhaseBarrier {
  size_t offset;  // in shared memory
  uint32_t arrivals;
  uint32_t pending;
  int64_t bytes = 0;  // expected and not here
  uint32_t phase = 0;
  bool shown = false;
  size_t starter;
  LaneClocks::Knowledge arrived = {};  // of this phase
  LaneClocks::Knowledge over = {};     // of the last one
};
struct NamedBarrier {
  int threads = 0;
  int arrived = 0;
  uint32_t generation = 0;
  LaneClocks::Knowledge coming = {};
  LaneClocks::Knowledge over = {};
};
struct Barriers {
  std::deque<PhaseBarrier> phases;  // addresses stay
  std::array<NamedBarrier, kNamed> named;
  bool named_used = false;
};
Barriers& barriers() {
  thread_local Barriers instance;
  return instance;
}
size_t this_lane() {
  return static_cast<size_t>(current_lane());
}

PhaseBarrier& find(const char* who, uint64_t* barrier) {
  const size_t offset = shared_offset(who, barrier, sizeof *barrier);
  check_access(barrier, sizeof *barrier, Access::kRead);
  auto& all = barriers().phases;
  const uint64_t number = *barrier - kMark;
  if (number >= all.size() || all[number].offset != offset) {
    violation(concat(who, ": at ", offset,
                     " of shared memory is no mbarrier, or something wrote over it"));
  }
  return all[number];
}

void end_phase_if_complete(PhaseBarrier& b) {
  if (b.pending > 0 || b.bytes > 0) return;
  if (b.bytes < 0) {
    violation(concat("mbarrier at ", b.offset, " of shared memory: ", -b.bytes,
                     " bytes more than its phase ", b.phase, " expected"));
  }
  ++b.phase;
  b.pending = b.arrivals;
  b.over = b.arrived;
}

struct Phase {
  const PhaseBarrier* barrier;
  uint32_t parity;
};
bool is_over(const void* what) {
  const Phase& p = *static_cast<const Phase*>(what);
  return (p.barrier->phase & 1) != p.parity;
}

}  // namespace

void start_barrier(uint64_t* barrier, uint32_t arrivals) {
  const size_t offset = shared_offset("mbarrier.init", barrier, sizeof *barrier);
  if (offset % 8 != 0) violation("mbarrier.init at an address not aligned to 8");
  if (arrivals < 1 || arrivals >= 1u << 20) {
    violation(concat("mbarrier.init of ", arrivals, " arrivals, expected 1 to 2^20 - 1"));
  }
  check_access(barrier, sizeof *barrier, Access::kWrite);
  auto& all = barriers().phases;
  if (all.size() == LaneClocks::kCopiers) {
    violation(concat("mbarrier.init: more than ", LaneClocks::kCopiers, " in a block"));
  }
  *barrier = kMark + all.size();
  all.push_back(
      {.offset = offset, .arrivals = arrivals, .pending = arrivals, .starter = this_lane()});
}

void show_barriers() {
  for (PhaseBarrier& b : barriers().phases) b.shown = b.shown || b.starter == this_lane();
}

void arrive(uint64_t* barrier, uint32_t expected_bytes) {
  PhaseBarrier& b = find("mbarrier.arrive", barrier);
  b.bytes += expected_bytes;
  if (b.pending == 0) {
    violation(concat("mbarrier at ", b.offset, " of shared memory: more than ", b.arrivals,
                     " arrivals in phase ", b.phase));
  }
  --b.pending;
  lane_clocks().release(this_lane(), b.arrived);
  end_phase_if_complete(b);
}

void wait_for_phase(uint64_t* barrier, uint32_t parity) {
  PhaseBarrier& b = find("mbarrier.try_wait", barrier);
  if (parity > 1) violation(concat("mbarrier.try_wait of parity ", parity, ", expected 0 or 1"));
  const Phase phase{&b, parity};
  wait_until(parity == 0 ? "a phase of parity 0 of the mbarrier in shared memory at"
                         : "a phase of parity 1 of the mbarrier in shared memory at",
             static_cast<int64_t>(b.offset), is_over, &phase);
  lane_clocks().acquire(this_lane(), b.over);
}

uint32_t copier_of(const char* who, uint64_t* barrier) {
  const PhaseBarrier& b = find(who, barrier);
  if (!b.shown) {
    violation(concat(who, ": its mbarrier at ", b.offset,
                     " of shared memory has no fence.mbarrier_init after its init"));
  }
  return static_cast<uint32_t>(*barrier - kMark);
}

void bytes_arrive(uint64_t* barrier, uint32_t bytes) {
  PhaseBarrier& b = find("a copy", barrier);
  b.bytes -= bytes;
  lane_clocks().add(b.arrived, LaneClocks::kFirstCopier + static_cast<uint32_t>(*barrier - kMark));
  end_phase_if_complete(b);
}

void arrive_named(int number, int threads) {
  if (number < 0 || number >= static_cast<int>(kNamed)) {
    violation(concat("bar of number ", number, ", expected 0 to 15"));
  }
  if (number == 0) violation("bar of number 0, which is that of __syncthreads");
  if (threads % 32 != 0 || threads < 32) {
    violation(concat("bar of ", threads, " threads, expected a multiple of 32"));
  }
  NamedBarrier& b = barriers().named[static_cast<size_t>(number)];
  if (b.arrived > 0 && b.threads != threads) {
    violation(concat("bar ", number, " of ", threads, " threads, others came for ", b.threads));
  }
  warp_operation("bar", 0xFFFFFFFF, nullptr, nullptr, 0);
  b.threads = threads;
  barriers().named_used = true;
  lane_clocks().release(this_lane(), b.coming);
  if (++b.arrived < threads) return;
  b.arrived = 0;
  ++b.generation;
  b.over = b.coming;
}

void sync_named(int number, int threads) {
  struct Generation {
    const NamedBarrier* barrier;
    uint32_t number;
  };
  // The generation before this lane's warp has come: the last lane of it may end it.
  const bool known = number >= 0 && number < static_cast<int>(kNamed);
  const NamedBarrier* const b = &barriers().named[known ? static_cast<size_t>(number) : 0];
  const Generation mine{b, b->generation};
  arrive_named(number, threads);
  wait_until(
      "bar.sync", number,
      [](const void* what) {
        const auto& g = *static_cast<const Generation*>(what);
        return g.barrier->generation != g.number;
      },
      &mine);
  lane_clocks().acquire(this_lane(), b->over);
}

void forget_barriers() {
  Barriers& all = barriers();
  all.phases.clear();
  if (std::exchange(all.named_used, false)) all.named = {};
}

}  // namespace tessera::simt
