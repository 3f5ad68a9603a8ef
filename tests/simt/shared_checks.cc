#include "tests/simt/shared_checks.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <new>

#include "kernels/core/error.h"
#include "tests/simt/access_state.h"
#include "tests/simt/block_runner.h"

namespace tessera::simt {
namespace {

constexpr size_t kUnit = 16;  // bytes that units read at least
constexpr size_t kWarps = 32;
constexpr auto kBytes = static_cast<size_t>(kSharedBytes);

bool is_copier(uint32_t lane) {
  return lane >= LaneClocks::kFirstCopier && lane < kSeveral;
}

/// Reads of a unit that end together: when each of their warps waited for the end.
struct UnitRead {
  UnitReader reader;
  std::array<uint32_t, 4> waited;  // 0: not yet
};
struct UnitAccesses {
  std::vector<UnitRead> reads;
  std::vector<uint32_t> fences;  // by lane: LaneClocks' time of its last fence_for_units
  size_t readers = 0;            // numbers of UnitReader are below
  uint32_t first = 0;            // number of reads[0]: those of earlier blocks are no more
};
UnitAccesses& unit_accesses() {
  thread_local UnitAccesses instance;
  return instance;
}

/// Whether `lane` knows that all of it is over.
bool is_over(const UnitRead& read, size_t lane) {
  const LaneClocks& clocks = lane_clocks();
  const size_t first_warp = read.reader.first_lane / 32;
  for (size_t i = 0; i < (read.reader.lanes + 31) / 32; ++i) {
    if (read.waited[i] == 0) return false;
    const bool known =
        read.reader.lanes >= 32
            ? clocks.knows_of_warp(lane, first_warp + i, read.waited[i])
            : lane == read.reader.first_lane ||
                  clocks.knows(lane, static_cast<uint32_t>(read.reader.first_lane), read.waited[i]);
    if (!known) return false;
  }
  return true;
}

/// Before a write: no unit may still read there.
void check_unit_reads(AccessState& s, size_t at, size_t bytes, uint32_t lane) {
  const UnitAccesses& all = unit_accesses();
  for (size_t reader = 0; reader < all.readers; ++reader) {
    for (size_t unit = at / kUnit; unit <= (at + bytes - 1) / kUnit; ++unit) {
      const uint32_t reads = s.unit_reads[reader * kBytes / kUnit + unit];
      if (reads <= all.first) continue;  // numbers begin with 1
      const UnitRead& read = all.reads[reads - all.first - 1];
      if (is_over(read, lane)) continue;
      complain(Access::kWrite, bytes,
               concat("of shared memory at ", unit * kUnit, " that ", read.reader.who, " of lane ",
                      read.reader.first_lane, " reads, whose end is not known here"));
    }
  }
}

/// Before a write, where LaneClocks are used: readers of other warps.
void check_warp_reads(AccessState& s, size_t at, size_t bytes, Access access, uint32_t lane) {
  const LaneClocks& clocks = lane_clocks();
  for (size_t warp = 0; warp < s.warp_epochs.size(); ++warp) {
    if (warp == warp_of(lane)) continue;  // cell.read has these
    const WarpRead& read = s.warp_reads[warp * kBytes + at];
    if (read.epoch < s.epoch) continue;
    for (uint32_t i = 0; i < 32; ++i) {
      const auto other = static_cast<uint32_t>(32 * warp + i);
      if ((read.mask >> i & 1) == 0 || clocks.knows(lane, other, read.time)) continue;
      complain(access, bytes,
               concat("of shared memory at ", at, " that lane ", other,
                      " read with no barrier in between"));
    }
  }
}

void note_warp_read(AccessState& s, size_t at, uint32_t lane) {
  WarpRead& read = s.warp_reads[warp_of(lane) * kBytes + at];
  if (read.epoch != s.epoch) read = {s.epoch, 0, 0};
  read.mask |= 1u << lane % 32;
  read.time = lane_clocks().now();
}

std::string writer(const Touch& write) {
  if (!is_copier(write.lane)) {
    return concat(" that lane ", write.lane, " wrote with no barrier in between");
  }
  return " to which a box is copied, whose mbarrier was not waited for";
}

/// Everything before a write but the copies of cp.async.
void check_before_write(AccessState& s, size_t at, size_t bytes, Access access, uint32_t lane) {
  const Cell& cell = s.cells[at];
  const bool clocks = lane_clocks().used();
  const bool of_several = cell.read.lane == kSeveralWarps;
  if (!(clocks && of_several) && collides(s, cell.read, lane)) {
    complain(
        access, bytes,
        concat("of shared memory at ", at, " that another lane read with no barrier in between"));
  }
  if (clocks && cell.read.epoch == s.epoch && cell.read.lane >= kSeveral) {
    check_warp_reads(s, at, bytes, access, lane);
  }
}

}  // namespace

LazyBytes::LazyBytes(size_t bytes) : bytes_(bytes) {
  data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
               -1, 0);
  if (data_ == MAP_FAILED) throw std::bad_alloc();
}
LazyBytes::~LazyBytes() {
  munmap(data_, bytes_);
}

AccessState::AccessState()
    : cells(kBytes), warp_reads(kWarps * kBytes), unit_reads(UnitReader::kMost * kBytes / kUnit) {}
AccessState& access_state() {
  thread_local AccessState instance;
  return instance;
}

void complain(Access access, size_t bytes, const std::string& where) {
  const char* const does = access == Access::kRead    ? "reads"
                           : access == Access::kWrite ? "writes"
                                                      : "updates";
  violation(concat(does, " ", bytes, " bytes ", where));
}

bool collides(const AccessState& s, const Touch& touch, uint32_t lane) {
  if (is_copier(touch.lane)) {
    return touch.epoch >= s.block_epoch && !lane_clocks().knows(lane, touch.lane, touch.time);
  }
  if (touch.epoch < s.epoch || touch.lane == lane) return false;
  if (touch.lane == kSeveralWarps) return true;
  const bool same_warp_epoch = touch.warp_epoch == s.warp_epochs[warp_of(lane)];
  const uint32_t warp = touch.lane >= kSeveral ? touch.lane - kSeveral : warp_of(touch.lane);
  if (warp == warp_of(lane)) {
    // Named barriers order the lanes of a warp too.
    const bool known = touch.lane < kSeveral && lane_clocks().knows(lane, touch.lane, touch.time);
    return same_warp_epoch && !known;
  }
  // Several lanes of a warp: check_warp_reads looks at each.
  if (touch.lane >= kSeveral) return !lane_clocks().used();
  return !lane_clocks().knows(lane, touch.lane, touch.time);
}

void remember_read(const AccessState& s, Touch& read, uint32_t lane) {
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
  read = {s.epoch, warp_epoch, reader, lane_clocks().now()};
}

void check_shared(AccessState& s, uintptr_t offset, size_t bytes, Access access, uint32_t lane) {
  if (offset + bytes > s.shared_bytes) {
    complain(access, bytes,
             concat("of shared memory at ", offset, ", the block asked for ", s.shared_bytes));
  }
  const bool clocks = lane_clocks().used();
  if (clocks && access != Access::kRead) check_unit_reads(s, offset, bytes, lane);
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
      complain(access, bytes, concat("of shared memory at ", i, writer(cell.write)));
    }
    if (access == Access::kRead) {
      remember_read(s, cell.read, lane);
      if (clocks) note_warp_read(s, i, lane);
      continue;
    }
    check_before_write(s, i, bytes, access, lane);
    cell.write = {s.epoch, s.warp_epochs[warp_of(lane)], lane, lane_clocks().now()};
    cell.atomic = access == Access::kAtomic;
  }
}

void check_read_by_warp(const void* address, size_t bytes) {
  AccessState& s = access_state();
  const auto offset = reinterpret_cast<uintptr_t>(address) - s.shared;
  if (offset >= s.shared_bytes) return;
  const auto lane = static_cast<uint32_t>(current_lane());
  check_shared(s, offset, bytes, Access::kRead, lane);
  check_shared(s, offset, bytes, Access::kRead, lane ^ 1);
}

void asynchronous_copy_starts(void* address, size_t bytes) {
  check_access(address, bytes, Access::kWrite);
  AccessState& s = access_state();
  const auto offset = reinterpret_cast<uintptr_t>(address) - s.shared;
  if (offset >= s.shared_bytes) violation("cp.async to memory that is not shared");
  for (size_t i = offset; i < offset + bytes; ++i) {
    s.cells[i].write = {};
    s.cells[i].copy_epoch = s.epoch;
  }
}

void asynchronous_copy_ends(void* address, size_t bytes) {
  AccessState& s = access_state();
  const auto offset = reinterpret_cast<uintptr_t>(address) - s.shared;
  for (size_t i = offset; i < offset + bytes; ++i) s.cells[i].copy_epoch = 0;
  check_access(address, bytes, Access::kWrite);
}

size_t shared_offset(const char* who, const void* address, size_t bytes) {
  const AccessState& s = access_state();
  const size_t offset = reinterpret_cast<uintptr_t>(address) - s.shared;
  if (offset >= kBytes) violation(concat(who, ": an address that is not in shared memory"));
  if (offset + bytes > s.shared_bytes) {
    violation(concat(who, ": shared memory at ", offset, " to ", offset + bytes,
                     ", the block asked for ", s.shared_bytes));
  }
  return offset;
}

void check_unit_write(const char* who, size_t offset, size_t bytes, uint32_t copier) {
  AccessState& s = access_state();
  const auto lane = static_cast<uint32_t>(current_lane());
  const auto& fences = unit_accesses().fences;
  check_unit_reads(s, offset, bytes, lane);
  for (size_t i = offset; i < offset + bytes; ++i) {
    Cell& cell = s.cells[i];
    if (cell.write.epoch >= s.block_epoch) {
      if (cell.copy_epoch >= s.block_epoch || collides(s, cell.write, lane)) {
        complain(Access::kWrite, bytes, concat("of shared memory at ", i, writer(cell.write)));
      }
      const bool fenced = is_copier(cell.write.lane) || fences[lane] > cell.write.time ||
                          fences[cell.write.lane] > cell.write.time;
      if (!fenced) {
        violation(concat(who, " to shared memory at ", i, " that lane ", cell.write.lane,
                         " wrote, with no fence.proxy.async in between"));
      }
    }
    check_before_write(s, i, bytes, Access::kWrite, lane);
    cell.write = {s.epoch, 0, LaneClocks::kFirstCopier + copier, lane_clocks().now()};
    cell.atomic = false;
    cell.copy_epoch = 0;
  }
}

uint32_t begin_unit_reads(const UnitReader& reader) {
  UnitAccesses& all = unit_accesses();
  all.reads.push_back({reader, {}});
  all.readers = std::max(all.readers, reader.number + 1);
  return all.first + static_cast<uint32_t>(all.reads.size());
}

void check_unit_read(uint32_t reads, size_t offset, size_t bytes) {
  AccessState& s = access_state();
  const UnitAccesses& all = unit_accesses();
  const UnitReader& reader = all.reads[reads - all.first - 1].reader;
  const Touch* last = nullptr;
  for (size_t i = offset; i < offset + bytes; ++i) {
    s.unit_reads[reader.number * kBytes / kUnit + i / kUnit] = reads;
    const Touch& write = s.cells[i].write;
    const bool same = last != nullptr && last->lane == write.lane && last->time == write.time &&
                      last->epoch == write.epoch && last->warp_epoch == write.warp_epoch;
    last = &write;
    if (same) continue;
    const auto wrong = [&](const std::string& what) {
      violation(concat(reader.who, " reads shared memory at ", i, what));
    };
    if (write.epoch < s.block_epoch) wrong(" that nothing wrote");
    for (size_t lane = reader.first_lane; lane < reader.first_lane + reader.lanes; lane += 32) {
      if (collides(s, write, static_cast<uint32_t>(lane))) wrong(writer(write));
      const bool fenced = is_copier(write.lane) || all.fences[lane] > write.time ||
                          all.fences[write.lane] > write.time;
      if (!fenced) {
        wrong(concat(" that lane ", write.lane, " wrote, with no fence.proxy.async in between"));
      }
    }
  }
}

void end_unit_reads(uint32_t reads, size_t warp) {
  UnitAccesses& all = unit_accesses();
  UnitRead& read = all.reads[reads - all.first - 1];
  read.waited[warp - read.reader.first_lane / 32] = lane_clocks().tick();
}

void fence_for_units() {
  unit_accesses().fences[static_cast<size_t>(current_lane())] = lane_clocks().tick();
}

void forget_unit_accesses() {
  UnitAccesses& all = unit_accesses();
  all.first += static_cast<uint32_t>(all.reads.size());
  all.reads.clear();
  all.readers = 0;
  all.fences.assign(1024, 0);
}

}  // namespace tessera::simt
