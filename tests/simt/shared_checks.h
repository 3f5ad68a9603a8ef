#pragma once

#include <cstddef>
#include <cstdint>

namespace tessera::simt {

/// Accesses to shared memory by units that work beside the lanes ("async proxy" in the PTX ISA):
/// the one that copies boxes, the one that multiplies matrices. They are ordered with accesses of
/// lanes by mbarriers, by waits and by fence.proxy.async only.

/// Where in shared memory `address` is; a violation unless all `bytes` are in what the launch asked
/// for.
size_t shared_offset(const char* who, const void* address, size_t bytes);

/// A copy that this lane starts: a write now, known from then on to those who know `copier`
/// (LaneClocks) at its end.
void check_unit_write(const char* who, size_t offset, size_t bytes, uint32_t copier);

/// Reads that are under way until their reader has waited. `first_lane`: the first of the `lanes`
/// that start it together, of whole warps, or of one lane.
struct UnitReader {
  static constexpr size_t kMost = 32;

  const char* who;
  size_t number;  ///< < kMost; one has only one kind of reads
  size_t first_lane;
  size_t lanes;
};
/// A number for reads that end together.
uint32_t begin_unit_reads(const UnitReader& reader);
void check_unit_read(uint32_t reads, size_t offset, size_t bytes);
/// The warp has waited for the end of these reads (or the lane of a reader that is one lane).
void end_unit_reads(uint32_t reads, size_t warp);

/// fence.proxy.async of this lane: what it wrote, or knows of, is there for units.
void fence_for_units();

}  // namespace tessera::simt
