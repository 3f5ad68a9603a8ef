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
#include "tests/simt/block_runner.h"
#include "tests/simt/device_memory.h"

namespace tessera::simt {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kArgumentBytes = 16384;        // of the launching stack that may be read
constexpr uint32_t kSeveral = 1u << 31;         // + a warp: lanes of it
constexpr uint32_t kSeveralWarps = UINT32_MAX;  // lanes of more than one

/// Who touched some bytes last, and when. Times are `epoch`: it grows with every launch, block and
/// barrier, so an epoch tells the block too. 0: nobody yet, as in fresh memory.
struct Touch {
  uint32_t epoch;
  uint32_t warp_epoch;
  uint32_t lane;
};
struct Cell {
  Touch write;
  Touch read;
  bool atomic;          // the write
  uint32_t copy_epoch;  // shared: when the asynchronous copy to it began that is under way
};

/// Memory that is zero and costs nothing until it is touched.
class Cells {
 public:
  explicit Cells(size_t count) : bytes_(count * sizeof(Cell)) {
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
  }
  ~Cells() { munmap(data_, bytes_); }
  Cells(const Cells&) = delete;
  Cells& operator=(const Cells&) = delete;
  Cell& operator[](size_t i) { return static_cast<Cell*>(data_)[i]; }

 private:
  size_t bytes_;
  void* data_;
};

constexpr size_t kGranule = 1;  // bytes of one cell of global memory: neighbouring u8 are apart

struct Allocation {
  size_t bytes = 0;
  bool managed = false;
  std::unique_ptr<Cells> cells;
};

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

/// Everything about the launch that this thread of the host runs.
struct State {
  uint32_t epoch = 0;
  uint32_t launch_epoch = 0;
  uint32_t block_epoch = 0;
  uintptr_t shared = 0;
  size_t shared_bytes = 0;
  uintptr_t frame = 0;
  uintptr_t stacks = 0;
  size_t stack_bytes = 0;
  Cells cells{static_cast<size_t>(kSharedBytes)};  // of shared memory, one per byte
  std::vector<uint32_t> warp_epochs;               // by warp
  std::vector<uint32_t> block_epochs;              // of the launch: where its blocks began
  std::vector<uint32_t> fences;                    // the last fence of each of them
  bool acquired = false;                           // this block did an atomic
  uint64_t generation = 0;
  uintptr_t hit_begin = 0;
  Allocation* hit = nullptr;
};
State& state() {
  thread_local State instance;
  return instance;
}

/// One clock for all threads of the host: cells of global memory outlive a launch.
uint32_t next_epoch() {
  static std::atomic<uint32_t> clock{0};
  return ++clock;
}

const char* name_of(Access access) {
  return access == Access::kRead ? "reads" : access == Access::kWrite ? "writes" : "updates";
}

[[noreturn]] void complain(Access access, size_t bytes, const std::string& where) {
  violation(concat(name_of(access), " ", bytes, " bytes ", where));
}

uint32_t warp_of(uint32_t lane) {
  return lane / 32;
}

/// Whether an earlier touch of this block is not ordered before one by `lane` now.
bool collides(const State& s, const Touch& touch, uint32_t lane) {
  if (touch.epoch < s.epoch || touch.lane == lane) return false;
  if (touch.lane == kSeveralWarps) return true;
  const bool same_warp_epoch = touch.warp_epoch == s.warp_epochs[warp_of(lane)];
  const uint32_t warp = touch.lane >= kSeveral ? touch.lane - kSeveral : warp_of(touch.lane);
  return warp != warp_of(lane) || same_warp_epoch;
}

/// Readers since the last barrier: one, several of a warp that has no barrier since, or more.
void remember_read(const State& s, Touch& read, uint32_t lane) {
  const uint32_t warp_epoch = s.warp_epochs[warp_of(lane)];
  uint32_t reader = lane;
  if (read.epoch == s.epoch && read.lane != lane) {
    const uint32_t warp = read.lane >= kSeveral ? read.lane - kSeveral : warp_of(read.lane);
    if (read.lane == kSeveralWarps || warp != warp_of(lane)) {
      reader = kSeveralWarps;
    } else if (read.warp_epoch == warp_epoch) {
      reader = kSeveral + warp;
    }
  }
  read = {s.epoch, warp_epoch, reader};
}

void check_shared(State& s, uintptr_t offset, size_t bytes, Access access, uint32_t lane) {
  if (offset + bytes > s.shared_bytes) {
    complain(access, bytes,
             concat("of shared memory at ", offset, ", the block asked for ", s.shared_bytes));
  }
  for (size_t i = offset; i < offset + bytes; ++i) {
    Cell& cell = s.cells[i];
    if (access == Access::kWrite && cell.copy_epoch >= s.block_epoch) {
      complain(access, bytes,
               concat("of shared memory at ", i, " to which an asynchronous copy is under way"));
    }
    if (access != Access::kWrite && cell.write.epoch < s.block_epoch) {
      complain(access, bytes, concat("of shared memory at ", i, " that nothing wrote"));
    }
    if (!(access == Access::kAtomic && cell.atomic) && collides(s, cell.write, lane)) {
      complain(access, bytes,
               concat("of shared memory at ", i, " that lane ", cell.write.lane,
                      " wrote with no barrier in between"));
    }
    if (access == Access::kRead) {
      remember_read(s, cell.read, lane);
      continue;
    }
    if (collides(s, cell.read, lane)) {
      complain(
          access, bytes,
          concat("of shared memory at ", i, " that another lane read with no barrier in between"));
    }
    cell.write = {s.epoch, s.warp_epochs[warp_of(lane)], lane};
    cell.atomic = access == Access::kAtomic;
  }
}

/// The last fence of the block that did something at `epoch`; 0: none.
uint32_t fence_after(const State& s, uint32_t epoch) {
  const auto block = std::upper_bound(s.block_epochs.begin(), s.block_epochs.end(), epoch);
  if (block == s.block_epochs.begin()) return 0;
  return s.fences[static_cast<size_t>(block - s.block_epochs.begin() - 1)];
}

/// As collides, of global memory: other blocks are ordered by their fence and our atomic only.
bool collides_globally(const State& s, const Touch& touch, uint32_t lane) {
  if (touch.epoch < s.launch_epoch) return false;
  if (touch.epoch >= s.block_epoch) return collides(s, touch, lane);
  return !(s.acquired && fence_after(s, touch.epoch) >= touch.epoch);
}

void check_global(State& s, Allocation& allocation, uintptr_t offset, size_t bytes, Access access) {
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
    cell.write = {s.epoch, s.warp_epochs[warp_of(lane)], lane};
    cell.atomic = access == Access::kAtomic;
  }
}

/// The allocation that covers `address`, and where it begins; nullptr: none.
Allocation* find(State& s, uintptr_t address) {
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
  State& s = state();
  if (access == Access::kAtomic) s.acquired = true;
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (at - s.stacks < s.stack_bytes) return;
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
  State& s = state();
  const auto at = reinterpret_cast<uintptr_t>(data);
  const Allocation* const allocation = find(s, at);
  if (allocation == nullptr || at >= s.hit_begin + allocation->bytes) return 0;
  return s.hit_begin + allocation->bytes - at;
}

void launch_begins(const void* frame) {
  State& s = state();
  s.frame = reinterpret_cast<uintptr_t>(frame);
  s.launch_epoch = s.epoch = next_epoch();
  s.block_epochs.clear();
  s.fences.clear();
}

void block_begins(void* shared, int64_t shared_bytes, const void* stacks, size_t stack_bytes) {
  State& s = state();
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
}

void launch_ends() {
  state().stack_bytes = 0;
}

void block_synchronised() {
  state().epoch = next_epoch();
}

void warp_synchronised(int warp) {
  state().warp_epochs[static_cast<size_t>(warp)] = next_epoch();
}

void lane_fenced() {
  state().fences.back() = state().epoch;
}

void check_read_by_warp(const void* address, size_t bytes) {
  check_access(address, bytes, Access::kRead);
  State& s = state();
  const auto offset = reinterpret_cast<uintptr_t>(address) - s.shared;
  if (offset >= s.shared_bytes) return;
  check_shared(s, offset, bytes, Access::kRead, static_cast<uint32_t>(current_lane()) ^ 1);
}

void asynchronous_copy_starts(void* address, size_t bytes) {
  check_access(address, bytes, Access::kWrite);
  State& s = state();
  const auto offset = reinterpret_cast<uintptr_t>(address) - s.shared;
  if (offset >= s.shared_bytes) violation("cp.async to memory that is not shared");
  for (size_t i = offset; i < offset + bytes; ++i) {
    s.cells[i].write = {};
    s.cells[i].copy_epoch = s.epoch;
  }
}

void asynchronous_copy_ends(void* address, size_t bytes) {
  State& s = state();
  const auto offset = reinterpret_cast<uintptr_t>(address) - s.shared;
  for (size_t i = offset; i < offset + bytes; ++i) s.cells[i].copy_epoch = 0;
  check_access(address, bytes, Access::kWrite);
}

}  // namespace tessera::simt
