#include "tests/simt/tensor_copies.h"

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "kernels/core/error.h"
#include "tests/simt/block_runner.h"
#include "tests/simt/group_matrix.h"
#include "tests/simt/memory_checks.h"
#include "tests/simt/phase_barriers.h"
#include "tests/simt/shared_checks.h"

namespace tessera::simt {
namespace {

constexpr uint64_t kMapMark = 0x7E45'0123'89AB'CDEF;
constexpr size_t kFirstStorer = 8;  // reader numbers below are those of warp groups

struct Groups {
  std::vector<std::vector<uint32_t>> closed;  // unit reads
  std::vector<uint32_t> open;
};
std::map<int, Groups>& stores() {
  thread_local std::map<int, Groups> of_lanes;
  return of_lanes;
}

const CUtensorMap& map_at(const char* who, const void* map) {
  const auto& m = *static_cast<const CUtensorMap*>(map);
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0 || m.mark != kMapMark) {
    violation(concat(who, ": no tensor map, or one that is not aligned to 64"));
  }
  return m;
}

/// Calls row(offset in the box, the part of it that is in the tensor, address of that part or
/// nullptr) for each of its lines along x.
struct Line {
  size_t at;     // in the box, bytes
  size_t skip;   // bytes before the part that is in the tensor
  size_t bytes;  // of the part
  unsigned char* global;
};
template <class Body>
void for_lines(const CUtensorMap& m, int x, int y, int z, const Body& body) {
  const auto line_bytes = size_t{m.box[0]} * m.element_bytes;
  for (uint32_t k = 0; k < m.box[2]; ++k) {
    for (uint32_t j = 0; j < m.box[1]; ++j) {
      const int64_t row = int64_t{y} + j;
      const int64_t plane = int64_t{z} + k;
      Line line{(size_t{k} * m.box[1] + j) * line_bytes, 0, 0, nullptr};
      const auto inside = [](int64_t at, uint64_t extent) {
        return at >= 0 && static_cast<uint64_t>(at) < extent;
      };
      const int64_t begin = std::max<int64_t>(0, x);
      const int64_t end =
          std::min<int64_t>(int64_t{x} + m.box[0], static_cast<int64_t>(m.extents[0]));
      if (inside(row, m.extents[1]) && inside(plane, m.extents[2]) && begin < end) {
        line.skip = static_cast<size_t>(begin - x) * m.element_bytes;
        line.bytes = static_cast<size_t>(end - begin) * m.element_bytes;
        line.global = m.data + static_cast<uint64_t>(plane) * m.strides[1] +
                      static_cast<uint64_t>(row) * m.strides[0] +
                      static_cast<uint64_t>(begin) * m.element_bytes;
      }
      body(line);
    }
  }
}

size_t box_bytes(const CUtensorMap& m) {
  return size_t{m.box[0]} * m.box[1] * m.box[2] * m.element_bytes;
}

/// Where a byte of the box is: `address` is that of the box.
size_t swizzled(const CUtensorMap& m, uint32_t address, size_t at) {
  if (m.swizzled == 0) return at;
  return swizzled_128(address + static_cast<uint32_t>(at)) - address;
}

void check_box(const char* who, const CUtensorMap& m, uint32_t address) {
  // The swizzle is one of addresses, whatever the box: one of 1024 bytes or more that begins in the
  // midst of a pattern is taken for a mistake.
  const uint32_t aligned =
      m.swizzled == 0 ? 128u : std::min<uint32_t>(1024, box_bytes(m) & -box_bytes(m));
  if (address % aligned != 0) {
    violation(
        concat(who, ": shared memory at address ", address, ", expected one aligned to ", aligned));
  }
}

}  // namespace

void copy_box(void* shared, const void* map, uint64_t* barrier, int x, int y, int z) {
  constexpr const char* kWho = "cp.async.bulk.tensor";
  const CUtensorMap& m = map_at(kWho, map);
  const size_t bytes = box_bytes(m);
  const size_t offset = shared_offset(kWho, shared, bytes);
  const uint32_t address = shared_address(shared);
  check_box(kWho, m, address);
  check_unit_write(kWho, offset, bytes, copier_of(kWho, barrier));
  auto* const to = static_cast<unsigned char*>(shared);
  std::memset(to, 0, bytes);
  for_lines(m, x, y, z, [&](const Line& line) {
    if (line.bytes == 0) return;
    check_access(line.global, line.bytes, Access::kRead);
    for (size_t i = 0; i < line.bytes; ++i) {
      to[swizzled(m, address, line.at + line.skip + i)] = line.global[i];
    }
  });
  bytes_arrive(barrier, static_cast<uint32_t>(bytes));
}

void copy_line(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  constexpr const char* kWho = "cp.async.bulk";
  const size_t offset = shared_offset(kWho, shared, bytes);
  if (bytes % 16 != 0 || shared_address(shared) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    violation(concat(kWho, " of ", bytes, " bytes, expected a multiple of 16 and addresses too"));
  }
  check_unit_write(kWho, offset, bytes, copier_of(kWho, barrier));
  check_access(global, bytes, Access::kRead);
  std::memcpy(shared, global, bytes);
  bytes_arrive(barrier, bytes);
}

void store_box(const void* map, const void* shared, int x, int y, int z) {
  constexpr const char* kWho = "cp.async.bulk.tensor";
  const CUtensorMap& m = map_at(kWho, map);
  const size_t bytes = box_bytes(m);
  const size_t offset = shared_offset(kWho, shared, bytes);
  const uint32_t address = shared_address(shared);
  check_box(kWho, m, address);
  const auto lane = static_cast<size_t>(current_lane());
  const uint32_t reads = begin_unit_reads(
      {kWho, kFirstStorer + lane / 32 % (UnitReader::kMost - kFirstStorer), lane, 1});
  check_unit_read(reads, offset, bytes);
  stores()[current_lane()].open.push_back(reads);
  const auto* const from = static_cast<const unsigned char*>(shared);
  for_lines(m, x, y, z, [&](const Line& line) {
    if (line.bytes == 0) return;
    check_access(line.global, line.bytes, Access::kWrite);
    for (size_t i = 0; i < line.bytes; ++i) {
      line.global[i] = from[swizzled(m, address, line.at + line.skip + i)];
    }
  });
}

void close_stores() {
  Groups& own = stores()[current_lane()];
  own.closed.push_back(std::move(own.open));
  own.open.clear();
}

void wait_for_stores(int pending_groups) {
  Groups& own = stores()[current_lane()];
  while (own.closed.size() > static_cast<size_t>(pending_groups)) {
    for (const uint32_t reads : own.closed.front()) {
      end_unit_reads(reads, static_cast<size_t>(current_lane()) / 32);
    }
    own.closed.erase(own.closed.begin());
  }
}

void forget_stores() {
  stores().clear();
}

}  // namespace tessera::simt

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* address, const cuuint64_t* extents, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* steps,
                                CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const uint32_t element = type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16  ? 2
                           : type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ? 4
                                                                     : 0;
  const bool known = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE || swizzle == CU_TENSOR_MAP_SWIZZLE_128B;
  if (element == 0 || rank != 3 || !known) return CUDA_ERROR_INVALID_VALUE;
  const uint32_t line = box[0] * element;
  bool right = reinterpret_cast<uintptr_t>(address) % 16 == 0 && line % 16 == 0 &&
               (swizzle == CU_TENSOR_MAP_SWIZZLE_NONE || line == 128);
  for (int i = 0; i < 3; ++i) {
    right = right && extents[i] >= 1 && extents[i] <= uint64_t{1} << 32 && box[i] >= 1 &&
            box[i] <= 256 && steps[i] == 1;
  }
  for (int i = 0; i < 2; ++i) {
    right = right && strides[i] % 16 == 0 && strides[i] < uint64_t{1} << 40;
  }
  if (!right) return CUDA_ERROR_INVALID_VALUE;
  *map = {.mark = tessera::simt::kMapMark,
          .data = static_cast<unsigned char*>(address),
          .extents = {extents[0], extents[1], extents[2]},
          .strides = {strides[0], strides[1]},
          .box = {box[0], box[1], box[2]},
          .element_bytes = element,
          .swizzled = swizzle == CU_TENSOR_MAP_SWIZZLE_128B ? 1u : 0u};
  return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  if (std::strcmp(name, "cuTensorMapEncodeTiled") != 0) return cudaErrorInvalidValue;
  *entry = reinterpret_cast<void*>(&cuTensorMapEncodeTiled);
  *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
