#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/simt/lane_clocks.h"
#include "tests/simt/memory_checks.h"

namespace tessera::simt {

// What memory_checks.cc and shared_checks.cc share: who touched which byte last.

inline constexpr uint32_t kSeveral = 1u << 31;         // + a warp: lanes of it
inline constexpr uint32_t kSeveralWarps = UINT32_MAX;  // lanes of more than one

/// Who touched some bytes last, and when. Times are `epoch`: it grows with every launch, block and
/// barrier, so an epoch tells the block too. 0: nobody yet, as in fresh memory. `time` is that of
/// LaneClocks.
struct Touch {
  uint32_t epoch;
  uint32_t warp_epoch;
  uint32_t lane;
  uint32_t time;
};
struct Cell {
  Touch write;
  Touch read;
  bool atomic;          // the write
  uint32_t copy_epoch;  // shared: when the asynchronous copy to it began that is under way
};

/// Memory of `count` T that is zero and costs nothing until it is touched.
class LazyBytes {
 public:
  explicit LazyBytes(size_t bytes);
  ~LazyBytes();
  LazyBytes(const LazyBytes&) = delete;
  LazyBytes& operator=(const LazyBytes&) = delete;
  void* data() const { return data_; }

 private:
  size_t bytes_;
  void* data_;
};
template <class T>
class Lazy {
 public:
  explicit Lazy(size_t count) : bytes_(count * sizeof(T)) {}
  T& operator[](size_t i) { return static_cast<T*>(bytes_.data())[i]; }

 private:
  LazyBytes bytes_;
};
using Cells = Lazy<Cell>;

inline constexpr size_t kGranule = 1;  // bytes of one cell of global memory: neighbouring u8 apart

struct Allocation {
  size_t bytes = 0;
  bool managed = false;
  std::unique_ptr<Cells> cells;
};

/// Reads of a byte of shared memory by a warp since the last barrier of the block; noted where
/// LaneClocks are used.
struct WarpRead {
  uint32_t epoch;
  uint32_t mask;
  uint32_t time;  // of the last one
};

/// Everything about the launch that this thread of the host runs.
struct AccessState {
  uint32_t epoch = 0;
  uint32_t launch_epoch = 0;
  uint32_t block_epoch = 0;
  uintptr_t shared = 0;
  size_t shared_bytes = 0;
  uintptr_t frame = 0;
  uintptr_t stacks = 0;
  size_t stack_bytes = 0;
  Cells cells;                         // of shared memory, one per byte
  Lazy<WarpRead> warp_reads;           // [warps, bytes]
  Lazy<uint32_t> unit_reads;           // [kReaders, bytes / 16]: UnitRead of a reader, + 1
  std::vector<uint32_t> warp_epochs;   // by warp
  std::vector<uint32_t> block_epochs;  // of the launch: where its blocks began
  std::vector<uint32_t> fences;        // the last fence of each of them
  bool acquired = false;               // this block did an atomic
  uint64_t generation = 0;
  uintptr_t hit_begin = 0;
  Allocation* hit = nullptr;

  AccessState();
};
AccessState& access_state();

[[noreturn]] void complain(Access access, size_t bytes, const std::string& where);

inline uint32_t warp_of(uint32_t lane) {
  return lane / 32;
}
/// Whether an earlier touch of this block is not ordered before one by `lane` now.
bool collides(const AccessState& s, const Touch& touch, uint32_t lane);
/// Readers since the last barrier: one, several of a warp that has no barrier since, or more.
void remember_read(const AccessState& s, Touch& read, uint32_t lane);

/// An access of this lane's to shared memory.
void check_shared(AccessState& s, uintptr_t offset, size_t bytes, Access access, uint32_t lane);
/// Nothing of the block before is left.
void forget_unit_accesses();

}  // namespace tessera::simt
