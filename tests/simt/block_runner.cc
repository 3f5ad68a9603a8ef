#include "tests/simt/block_runner.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <boost/context/detail/fcontext.hpp>
#include <new>
#include <utility>
#include <vector>

#include "kernels/core/error.h"
#include "tests/simt/code_place.h"
#include "tests/simt/group_matrix.h"
#include "tests/simt/memory_checks.h"
#include "tests/simt/phase_barriers.h"
#include "tests/simt/tensor_copies.h"
#include "tests/simt/warp_matrix.h"

thread_local constinit uint3 threadIdx{};
thread_local constinit uint3 blockIdx{};
thread_local constinit dim3 blockDim{};
thread_local constinit dim3 gridDim{};

namespace tessera::gpu {
/// What kernels/core/shared_memory.cuh declares.
alignas(1024) thread_local constinit unsigned char dynamic_shared_memory[simt::kSharedBytes]{};
}  // namespace tessera::gpu

namespace tessera::simt {

namespace {

namespace context = boost::context::detail;

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kMostLanes = 1024;
constexpr size_t kWarpLanes = 32;

enum class Wait : uint8_t { kNone, kBlock, kWarp, kGroup, kReady, kOver };

struct Lane {
  context::fcontext_t fiber = nullptr;
  Wait wait = Wait::kNone;
  const char* site = "";
  uint32_t mask = 0;
  void* payload = nullptr;
  Ready ready = nullptr;
  const void* what = nullptr;
  int64_t detail = 0;
};

/// The lanes of the block that this thread of the host runs, and their stacks.
struct Runner {
  Runner() {
    stacks = mmap(nullptr, kStackBytes * kMostLanes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) throw std::bad_alloc();
  }
  ~Runner() { munmap(stacks, kStackBytes * kMostLanes); }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  void* stack_top(int lane) {
    return static_cast<char*>(stacks) + kStackBytes * static_cast<size_t>(lane + 1);
  }

  void* stacks = nullptr;
  std::vector<Lane> lanes;
  const std::function<void()>* body = nullptr;
  context::fcontext_t scheduler = nullptr;
  int current = -1;
  int64_t barrier_sum = 0;
  int64_t barrier_result = 0;
  std::string broken;
  const void* site = nullptr;
};
Runner& runner() {
  thread_local Runner instance;
  return instance;
}

void back_to_scheduler(Runner& r) {
  const auto from = context::jump_fcontext(r.scheduler, nullptr);
  r.scheduler = from.fctx;
}

void lane_main(context::transfer_t from) {
  Runner& r = runner();
  r.scheduler = from.fctx;
  (*r.body)();
  r.lanes[static_cast<size_t>(r.current)].wait = Wait::kOver;
  back_to_scheduler(r);
}

void set_thread_index(int lane) {
  const dim3& size = blockDim;
  const auto l = static_cast<unsigned>(lane);
  threadIdx = {l % size.x, l / size.x % size.y, l / (size.x * size.y)};
}

std::string place(const uint3& at) {
  return concat("(", at.x, ", ", at.y, ", ", at.z, ")");
}

/// What the lanes of a stuck block wait for.
std::string waiting(const Runner& r) {
  std::string text;
  for (size_t i = 0; i < r.lanes.size(); ++i) {
    const Lane& lane = r.lanes[i];
    const auto same = [&](const Lane& other) {
      return lane.wait == other.wait && lane.site == other.site && lane.detail == other.detail;
    };
    if (i > 0 && same(r.lanes[i - 1])) continue;
    if (!text.empty()) text += ", ";
    text += concat("from lane ", i, ": ", lane.wait == Wait::kOver ? "ended" : lane.site);
    if (lane.wait == Wait::kReady) text += concat(" ", lane.detail);
  }
  return text;
}

/// Runs every lane that can go on. False: none could.
bool run_ready_lanes(Runner& r) {
  bool ran = false;
  for (size_t i = 0; i < r.lanes.size(); ++i) {
    Lane& lane = r.lanes[i];
    if (lane.wait == Wait::kReady && lane.ready(lane.what)) lane.wait = Wait::kNone;
    if (lane.wait != Wait::kNone) continue;
    lane.detail = 0;
    ran = true;
    r.current = static_cast<int>(i);
    set_thread_index(r.current);
    lane.fiber = context::jump_fcontext(lane.fiber, nullptr).fctx;
    r.current = -1;
    if (!r.broken.empty()) return false;
  }
  return ran;
}

void release_barrier(Runner& r) {
  r.barrier_result = std::exchange(r.barrier_sum, 0);
  for (Lane& lane : r.lanes) lane.wait = Wait::kNone;
  block_synchronised();
}

void run_block(Runner& r) {
  const dim3& size = blockDim;
  r.lanes.assign(size.x * size.y * size.z, Lane{});
  for (size_t i = 0; i < r.lanes.size(); ++i) {
    r.lanes[i].fiber =
        context::make_fcontext(r.stack_top(static_cast<int>(i)), kStackBytes, lane_main);
  }
  const auto all = [&](Wait wait) {
    return std::all_of(r.lanes.begin(), r.lanes.end(), [&](const Lane& lane) {
      return lane.wait == wait && (wait != Wait::kBlock || lane.site == r.lanes.front().site);
    });
  };
  while (!all(Wait::kOver)) {
    if (run_ready_lanes(r)) continue;
    if (!r.broken.empty()) return;
    if (all(Wait::kBlock)) {
      release_barrier(r);
    } else {
      r.broken = concat("not all lanes reach the same barrier: ", waiting(r));
      return;
    }
  }
}

}  // namespace

bool in_lane() {
  return runner().current >= 0;
}
int current_lane() {
  return runner().current;
}

void note_site(const void* return_address) {
  runner().site = return_address;
}

void violation(const std::string& what) {
  Runner& r = runner();
  r.broken = concat("lane ", place(threadIdx), " ", what, ", near ", code_line(r.site));
  for (;;) back_to_scheduler(r);  // never resumed; its stack is used again by the next block
}

void stop_kernel(const char* why) {
  violation(concat("stops: ", why));
}

void run(const Launch& launch, const std::function<void()>& body) {
  Runner& r = runner();
  const int64_t lanes = int64_t{1} * launch.block.x * launch.block.y * launch.block.z;
  CHECK(lanes >= 1 && lanes <= kMostLanes, "launch of ", code_function(launch.kernel),
        ": blocks of ", lanes, " threads, expected 1 to ", kMostLanes);
  CHECK(launch.grid.x > 0 && launch.grid.y > 0 && launch.grid.z > 0 && launch.grid.y <= 65535 &&
            launch.grid.z <= 65535,
        "launch of ", code_function(launch.kernel), ": grid ", launch.grid.x, " x ", launch.grid.y,
        " x ", launch.grid.z, ", expected extents of at least 1, the last two at most 65535");
  CHECK(launch.shared_bytes >= 0 && launch.shared_bytes <= kSharedBytes, "launch of ",
        code_function(launch.kernel), ": ", launch.shared_bytes,
        " bytes of shared memory, a block has ", kSharedBytes);
  r.body = &body;
  r.broken.clear();
  r.barrier_sum = 0;
  blockDim = launch.block;
  gridDim = launch.grid;
  const char frame = 0;
  const DeviceWork work;
  launch_begins(&frame);
  for (unsigned z = 0; z < launch.grid.z; ++z) {
    for (unsigned y = 0; y < launch.grid.y; ++y) {
      for (unsigned x = 0; x < launch.grid.x; ++x) {
        blockIdx = {x, y, z};
        block_begins(gpu::dynamic_shared_memory, launch.shared_bytes, r.stacks,
                     kStackBytes * kMostLanes);
        forget_copies();
        forget_barriers();
        forget_products();
        forget_stores();
        run_block(r);
        r.current = -1;
        if (r.broken.empty()) continue;
        launch_ends();
        throw Error(ExitCode::kError, concat("kernel ", code_function(launch.kernel), ", block ",
                                             place({x, y, z}), ": ", r.broken));
      }
    }
  }
  launch_ends();
}

int64_t block_barrier(const char* site, int64_t value) {
  Runner& r = runner();
  Lane& lane = r.lanes[static_cast<size_t>(r.current)];
  r.barrier_sum += value;
  lane.wait = Wait::kBlock;
  lane.site = site;
  back_to_scheduler(r);
  return r.barrier_result;
}

void warp_operation(const char* site, uint32_t mask, void* payload, Combine combine, int argument) {
  Runner& r = runner();
  const auto self = static_cast<size_t>(r.current);
  const size_t first = self / kWarpLanes * kWarpLanes;
  Lane& lane = r.lanes[self];
  if (((mask >> (self % kWarpLanes)) & 1) == 0) violation(concat(site, ": is not in its own mask"));
  lane.wait = Wait::kWarp;
  lane.site = site;
  lane.mask = mask;
  lane.payload = payload;
  std::array<void*, kWarpLanes> payloads{};
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const auto i = static_cast<size_t>(std::countr_zero(left));
    if (first + i >= r.lanes.size())
      violation(concat(site, ": lane ", i, " of its mask is absent"));
    const Lane& other = r.lanes[first + i];
    if (other.wait != Wait::kWarp || other.site != site || other.mask != mask) {
      back_to_scheduler(r);  // the last lane to come does the work for all
      return;
    }
    payloads[i] = other.payload;
  }
  if (combine != nullptr) combine(payloads.data(), argument);
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    r.lanes[first + static_cast<size_t>(std::countr_zero(left))].wait = Wait::kNone;
  }
}

void wait_until(const char* site, int64_t detail, Ready ready, const void* what) {
  if (ready(what)) return;
  Runner& r = runner();
  Lane& lane = r.lanes[static_cast<size_t>(r.current)];
  lane.wait = Wait::kReady;
  lane.site = site;
  lane.ready = ready;
  lane.what = what;
  lane.detail = detail;
  back_to_scheduler(r);
}

void group_operation(const char* site, void* payload, GroupCombine combine) {
  Runner& r = runner();
  const auto self = static_cast<size_t>(r.current);
  const size_t first = self / kGroupLanes * kGroupLanes;
  Lane& lane = r.lanes[self];
  lane.wait = Wait::kGroup;
  lane.site = site;
  lane.payload = payload;
  if (first + kGroupLanes > r.lanes.size()) {
    violation(concat(site, ": the warp group has less than ", kGroupLanes, " lanes"));
  }
  std::array<void*, kGroupLanes> payloads{};
  for (size_t i = 0; i < kGroupLanes; ++i) {
    const Lane& other = r.lanes[first + i];
    if (other.wait != Wait::kGroup || other.site != site) {
      back_to_scheduler(r);  // the last lane to come does the work for all
      return;
    }
    payloads[i] = other.payload;
  }
  combine(payloads.data());
  for (size_t i = 0; i < kGroupLanes; ++i) r.lanes[first + i].wait = Wait::kNone;
}

void warp_barrier(uint32_t mask) {
  warp_operation(
      "__syncwarp", mask, nullptr,
      [](void* const*, int argument) {
        warp_synchronised(current_lane() / 32, static_cast<uint32_t>(argument));
      },
      static_cast<int>(mask));
}

}  // namespace tessera::simt
