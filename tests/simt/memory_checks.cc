#include "tests/simt/memory_checks.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <shared_mutex>
#include <vector>

#include "kernels/core/error.h"
#include "tests/simt/access_state.h"
#include "tests/simt/block_runner.h"
#include "tests/simt/device_memory.h"
#include "tests/simt/group_matrix.h"

namespace tessera::simt {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kArgumentBytes = 16384;  // of the launching stack that may be read

struct Heap {
  std::shared_mutex mutex;
  std::map<uintptr_t, std::unique_ptr<Allocation>> allocations;
  uint64_t generation = 1;
};
// Never destroyed: buffers of static objects are given back when the program ends.
Heap& heap() {
  static Heap* const instance = std::make_unique<Heap>().release();
  return *instance;
}

/// Memory of the program's own file: constants, tables.
bool in_program(uintptr_t address) {
  struct Range {
    uintptr_t begin, end;
  };
  static const std::vector<Range> ranges = [] {
    std::vector<Range> found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type != PT_LOAD) continue;
            const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
            static_cast<std::vector<Range>*>(out)->push_back({begin, begin + header.p_memsz});
          }
          return 0;
        },
        &found);
    return found;
  }();
  return std::any_of(ranges.begin(), ranges.end(), [&](const Range& range) {
    return address >= range.begin && address < range.end;
  });
}

/// The built-in variables.
bool of_launch(uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(&threadIdx) < sizeof(threadIdx) ||
         address - reinterpret_cast<uintptr_t>(&blockIdx) < sizeof(blockIdx) ||
         address - reinterpret_cast<uintptr_t>(&blockDim) < sizeof(blockDim) ||
         address - reinterpret_cast<uintptr_t>(&gridDim) < sizeof(gridDim);
}

size_t mapped_bytes(size_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage + kPage;
}

/// One clock for all threads of the host: cells of global memory outlive a launch.
uint32_t next_epoch() {
  static std::atomic<uint32_t> clock{0};
  return ++clock;
}

/// The last fence of the block that did something at `epoch`; 0: none.
uint32_t fence_after(const AccessState& s, uint32_t epoch) {
  const auto block = std::upper_bound(s.block_epochs.begin(), s.block_epochs.end(), epoch);
  if (block == s.block_epochs.begin()) return 0;
  return s.fences[static_cast<size_t>(block - s.block_epochs.begin() - 1)];
}

/// As collides, of global memory: other blocks are ordered by their fence and our atomic only.
bool collides_globally(const AccessState& s, const Touch& touch, uint32_t lane) {
  if (touch.epoch < s.launch_epoch) return false;
  if (touch.epoch >= s.block_epoch) return collides(s, touch, lane);
  return !(s.acquired && fence_after(s, touch.epoch) >= touch.epoch);
}

void check_global(AccessState& s, Allocation& allocation, uintptr_t offset, size_t bytes,
                  Access access) {
  const auto lane = static_cast<uint32_t>(current_lane());
  for (size_t i = offset / kGranule; i <= (offset + bytes - 1) / kGranule; ++i) {
    Cell& cell = (*allocation.cells)[i];
    const bool both_atomic = access == Access::kAtomic && cell.atomic;
    if (!both_atomic && collides_globally(s, cell.write, lane)) {
      complain(access, bytes,
               concat("of global memory at ", i * kGranule, " of ", allocation.bytes,
                      " that another lane wrote with no barrier in between"));
    }
    if (access == Access::kRead) {
      // A read by another block stays the one to tell of, until a write.
      const bool of_others = cell.read.epoch >= s.launch_epoch && cell.read.epoch < s.block_epoch;
      if (!of_others) remember_read(s, cell.read, lane);
      continue;
    }
    if (!both_atomic && collides_globally(s, cell.read, lane)) {
      complain(access, bytes,
               concat("of global memory at ", i * kGranule, " of ", allocation.bytes,
                      " that another lane read with no barrier in between"));
    }
    cell.write = {s.epoch, s.warp_epochs[warp_of(lane)], lane, lane_clocks().now()};
    cell.atomic = access == Access::kAtomic;
  }
}

/// The allocation that covers `address`, and where it begins; nullptr: none.
Allocation* find(AccessState& s, uintptr_t address) {
  Heap& all = heap();
  if (s.hit != nullptr && s.generation == __atomic_load_n(&all.generation, __ATOMIC_ACQUIRE) &&
      address >= s.hit_begin && address < s.hit_begin + s.hit->bytes) {
    return s.hit;
  }
  const std::shared_lock lock(all.mutex);
  auto it = all.allocations.upper_bound(address);
  if (it == all.allocations.begin()) return nullptr;
  --it;
  // A little beyond the end still names the allocation in the message.
  if (address >= it->first + it->second->bytes + kPage) return nullptr;
  s.generation = all.generation;
  s.hit_begin = it->first;
  s.hit = it->second.get();
  return s.hit;
}

}  // namespace

void check_access(const void* address, size_t bytes, Access access) {
  if (!in_lane() || bytes == 0) return;
  AccessState& s = access_state();
  if (access == Access::kAtomic) s.acquired = true;
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (at - s.stacks < s.stack_bytes) return check_registers(address, bytes);
  if (at - s.shared < static_cast<size_t>(kSharedBytes)) {
    return check_shared(s, at - s.shared, bytes, access, static_cast<uint32_t>(current_lane()));
  }
  if (of_launch(at)) return;
  if (access == Access::kRead && at - s.frame < kArgumentBytes) return;
  if (Allocation* const allocation = find(s, at)) {
    const uintptr_t offset = at - s.hit_begin;
    if (offset + bytes > allocation->bytes) {
      complain(access, bytes,
               concat("of global memory at ", offset, " of an allocation of ", allocation->bytes));
    }
    return check_global(s, *allocation, offset, bytes, access);
  }
  if (access == Access::kRead && in_program(at)) return;
  complain(access, bytes, "of memory that is not the device's");
}

void* allocate(size_t bytes, bool managed) {
  const size_t mapped = mapped_bytes(bytes);
  void* data = managed ? mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
                       : device_memory().take(mapped);
  if (data == MAP_FAILED) throw std::bad_alloc();
  auto allocation = std::make_unique<Allocation>();
  allocation->bytes = bytes;
  allocation->managed = managed;
  allocation->cells = std::make_unique<Cells>(bytes / kGranule + 1);
  Heap& all = heap();
  const std::unique_lock lock(all.mutex);
  all.allocations.emplace(reinterpret_cast<uintptr_t>(data), std::move(allocation));
  __atomic_add_fetch(&all.generation, 1, __ATOMIC_ACQ_REL);
  return data;
}

void release(void* data) {
  if (data == nullptr) return;
  Heap& all = heap();
  const std::unique_lock lock(all.mutex);
  const auto it = all.allocations.find(reinterpret_cast<uintptr_t>(data));
  if (it == all.allocations.end()) return;
  const size_t mapped = mapped_bytes(it->second->bytes);
  it->second->managed ? static_cast<void>(munmap(data, mapped))
                      : device_memory().give_back(data, mapped);
  all.allocations.erase(it);
  __atomic_add_fetch(&all.generation, 1, __ATOMIC_ACQ_REL);
}

DeviceWork::DeviceWork() {
  device_memory().open();
}
DeviceWork::~DeviceWork() {
  device_memory().close();
}

size_t bytes_from(const void* data) {
  AccessState& s = access_state();
  const auto at = reinterpret_cast<uintptr_t>(data);
  const Allocation* const allocation = find(s, at);
  if (allocation == nullptr || at >= s.hit_begin + allocation->bytes) return 0;
  return s.hit_begin + allocation->bytes - at;
}

void launch_begins(const void* frame) {
  AccessState& s = access_state();
  s.frame = reinterpret_cast<uintptr_t>(frame);
  s.launch_epoch = s.epoch = next_epoch();
  s.block_epochs.clear();
  s.fences.clear();
}

void block_begins(void* shared, int64_t shared_bytes, const void* stacks, size_t stack_bytes) {
  AccessState& s = access_state();
  s.block_epoch = s.epoch = next_epoch();
  s.block_epochs.push_back(s.epoch);
  s.fences.push_back(0);
  s.acquired = false;
  s.shared = reinterpret_cast<uintptr_t>(shared);
  s.shared_bytes = static_cast<size_t>(shared_bytes);
  s.stacks = reinterpret_cast<uintptr_t>(stacks);
  s.stack_bytes = stack_bytes;
  s.warp_epochs.resize(32);
  for (uint32_t& epoch : s.warp_epochs) epoch = next_epoch();
  lane_clocks().begin_block(static_cast<size_t>(blockDim.x) * blockDim.y * blockDim.z);
  forget_unit_accesses();
}

void launch_ends() {
  access_state().stack_bytes = 0;
}

void block_synchronised() {
  access_state().epoch = next_epoch();
  lane_clocks().meet_all();
}

void warp_synchronised(int warp, uint32_t mask) {
  access_state().warp_epochs[static_cast<size_t>(warp)] = next_epoch();
  lane_clocks().meet(static_cast<size_t>(warp), mask);
}

void lane_fenced() {
  access_state().fences.back() = access_state().epoch;
}

}  // namespace tessera::simt
