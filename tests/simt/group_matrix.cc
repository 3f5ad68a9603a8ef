#include "tests/simt/group_matrix.h"

#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/core/error.h"
#include "tests/simt/access_state.h"
#include "tests/simt/block_runner.h"
#include "tests/simt/shared_checks.h"

namespace tessera::simt {
namespace {

constexpr size_t kRows = 64;
constexpr size_t kDepth = 16;
constexpr size_t kMostColumns = 256;
constexpr size_t kLine = 64;                   // elements: 128 bytes
constexpr uint32_t kFirstAddress = 1024 + 16;  // of the block's memory
constexpr const char* kProduct = "wgmma.mma_async";

/// Sums of one lane that are under way.
struct Sums {
  float* c;
  std::vector<float> values;
  uint32_t reads;  // of the group of products that adds to them last
};
struct LaneProducts {
  bool fenced = false;
  uint32_t open = 0;  // unit reads of the group that is not closed; 0: it is empty
  std::vector<uint32_t> closed;
  std::vector<Sums> sums;
};
struct Products {
  std::vector<LaneProducts> lanes{1024};
  bool used = false;
};
Products& products() {
  thread_local Products instance;
  return instance;
}
LaneProducts& of_lane(size_t lane) {
  return products().lanes[lane];
}

/// A matrix descriptor of the swizzle of 128 bytes.
struct Matrix {
  uint32_t first;
  uint32_t next_lines;  // between 64 of the axis that lines are along
  uint32_t next_block;  // between blocks of eight lines

  explicit Matrix(uint64_t bits)
      : first(static_cast<uint32_t>(bits & 0x3FFF) << 4),
        next_lines(static_cast<uint32_t>(bits >> 16 & 0x3FFF) << 4),
        next_block(static_cast<uint32_t>(bits >> 32 & 0x3FFF) << 4) {
    if (bits >> 62 != 1) violation("wgmma: a matrix in another swizzle than that of 128 bytes");
    if ((bits >> 49 & 7) != 0 || (first & 0x380) != 0) {
      violation(
          concat("wgmma: a matrix at address ", first, ", whose blocks are not aligned to 1024"));
    }
  }
  /// Of eight elements from `at` on, a multiple of 8, along a line.
  size_t offset(size_t line, size_t at) const {
    const auto address = static_cast<uint32_t>(
        first + at / kLine * next_lines + line / 8 * next_block + line % 8 * 128 + at % kLine * 2);
    const uint32_t place = swizzled_128(address);
    const AccessState& s = access_state();
    if (place < kFirstAddress || place - kFirstAddress + 16 > s.shared_bytes) {
      violation(concat("wgmma: a matrix at address ", place, ", the block asked for ",
                       s.shared_bytes, " bytes from ", kFirstAddress, " on"));
    }
    return place - kFirstAddress;
  }
};

double bf16(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

/// Calls set(line, place along the line, element) for `lines` lines of `length`.
template <class Set>
void read_matrix(uint64_t bits, size_t lines, size_t length, uint32_t reads, const Set& set) {
  const Matrix matrix(bits);
  const AccessState& s = access_state();
  for (size_t line = 0; line < lines; ++line) {
    for (size_t at = 0; at < length; at += 8) {
      const size_t offset = matrix.offset(line, at);
      check_unit_read(reads, offset, 16);
      std::array<uint16_t, 8> elements;
      std::memcpy(elements.data(), reinterpret_cast<const void*>(s.shared + offset), 16);
      for (size_t i = 0; i < 8; ++i) set(line, at + i, bf16(elements[i]));
    }
  }
}

struct Factors {
  std::array<std::array<double, kDepth>, kRows> a;
  std::array<std::array<double, kMostColumns>, kDepth> b;
};

void gather_a(Factors& f, void* const payloads[kGroupLanes], uint32_t reads) {
  const auto& p = *static_cast<const GroupProduct*>(payloads[0]);
  if (p.a == nullptr) {
    if (p.a_along_rows) {
      read_matrix(p.a_matrix, kDepth, kRows, reads,
                  [&](size_t k, size_t row, double x) { f.a[row][k] = x; });
    } else {
      read_matrix(p.a_matrix, kRows, kDepth, reads,
                  [&](size_t row, size_t k, double x) { f.a[row][k] = x; });
    }
    return;
  }
  for (size_t lane = 0; lane < kGroupLanes; ++lane) {
    const uint32_t* const a = static_cast<const GroupProduct*>(payloads[lane])->a;
    for (size_t i = 0; i < 4; ++i) {
      const size_t row = lane / 32 * 16 + lane % 32 / 4 + 8 * (i % 2);
      const size_t k = lane % 4 * 2 + 8 * (i / 2);
      f.a[row][k] = bf16(static_cast<uint16_t>(a[i]));
      f.a[row][k + 1] = bf16(static_cast<uint16_t>(a[i] >> 16));
    }
  }
}

void gather_b(Factors& f, const GroupProduct& p, uint32_t reads) {
  const auto columns = static_cast<size_t>(p.columns);
  if (p.b_along_columns) {
    read_matrix(p.b_matrix, kDepth, columns, reads,
                [&](size_t k, size_t column, double x) { f.b[k][column] = x; });
  } else {
    read_matrix(p.b_matrix, columns, kDepth, reads,
                [&](size_t column, size_t k, double x) { f.b[k][column] = x; });
  }
}

/// The sums of a lane as the last product left them, and under way again.
Sums& take_sums(size_t lane, const GroupProduct& p, uint32_t reads) {
  LaneProducts& own = of_lane(lane);
  const auto count = static_cast<size_t>(p.columns / 2);
  for (Sums& sums : own.sums) {
    if (sums.c != p.c) continue;
    if (sums.values.size() != count) violation("wgmma: sums under way in another shape");
    sums.reads = reads;
    return sums;
  }
  own.sums.push_back({p.c, std::vector<float>(p.c, p.c + count), reads});
  return own.sums.back();
}

/// The group of products that this one joins; begins it.
uint32_t join_group(void* const payloads[kGroupLanes], size_t first) {
  const auto& p = *static_cast<const GroupProduct*>(payloads[0]);
  const uint32_t open = of_lane(first).open;
  for (size_t i = 0; i < kGroupLanes; ++i) {
    const auto& other = *static_cast<const GroupProduct*>(payloads[i]);
    if (other.a_matrix != p.a_matrix || other.b_matrix != p.b_matrix || other.add != p.add) {
      violation("wgmma: lanes of a warp group with different matrices");
    }
    const LaneProducts& own = of_lane(first + i);
    if (own.open != open) violation("wgmma: warps of a group close their products differently");
    if (open == 0 && !own.fenced) {
      violation("wgmma.mma_async: no wgmma.fence before the first product of a group");
    }
  }
  if (open != 0) return open;
  const uint32_t reads = begin_unit_reads({kProduct, first / kGroupLanes, first, kGroupLanes});
  for (size_t i = 0; i < kGroupLanes; ++i) of_lane(first + i).open = reads;
  return reads;
}

void multiply_all(void* const payloads[kGroupLanes]) {
  const auto& p = *static_cast<const GroupProduct*>(payloads[0]);
  const size_t first = static_cast<size_t>(current_lane()) / kGroupLanes * kGroupLanes;
  const auto columns = static_cast<size_t>(p.columns);
  const uint32_t reads = join_group(payloads, first);
  static thread_local Factors f;
  gather_a(f, payloads, reads);
  gather_b(f, p, reads);
  std::array<double, kMostColumns> products_of_row;
  for (size_t row = 0; row < kRows; ++row) {
    products_of_row = {};
    for (size_t k = 0; k < kDepth; ++k) {
      const double x = f.a[row][k];
      for (size_t j = 0; j < columns; ++j) products_of_row[j] += x * f.b[k][j];
    }
    const size_t half = row % 16 / 8;
    for (size_t quarter = 0; quarter < 4; ++quarter) {
      const size_t lane = row / 16 * 32 + row % 8 * 4 + quarter;
      const auto& own = *static_cast<const GroupProduct*>(payloads[lane]);
      // A lane has two rows: the first one begins the sums.
      Sums& sums = take_sums(first + lane, own, reads);
      for (size_t j = 0; j < columns / 8; ++j) {
        for (size_t i = 0; i < 2; ++i) {
          float& sum = sums.values[4 * j + 2 * half + i];
          const double before = p.add ? sum : 0.0;
          sum = static_cast<float>(before + products_of_row[8 * j + 2 * quarter + i]);
        }
      }
    }
  }
  for (size_t lane = 0; lane < kGroupLanes; ++lane) {
    const auto& own = *static_cast<const GroupProduct*>(payloads[lane]);
    for (size_t i = 0; i < columns / 2; ++i) own.c[i] = std::numeric_limits<float>::quiet_NaN();
  }
}

/// Ends the oldest groups of the lanes of this warp.
void end_groups(void* const*, int pending_groups) {
  const size_t warp = static_cast<size_t>(current_lane()) / 32;
  std::vector<uint32_t> ended;
  for (size_t lane = 32 * warp; lane < 32 * warp + 32; ++lane) {
    LaneProducts& own = of_lane(lane);
    while (own.closed.size() > static_cast<size_t>(pending_groups)) {
      const uint32_t reads = own.closed.front();
      own.closed.erase(own.closed.begin());
      if (lane % 32 == 0 && reads != 0) ended.push_back(reads);
      std::erase_if(own.sums, [&](const Sums& sums) {
        if (sums.reads != reads) return false;
        std::memcpy(sums.c, sums.values.data(), sums.values.size() * sizeof(float));
        return true;
      });
    }
  }
  for (const uint32_t reads : ended) end_unit_reads(reads, warp);
}

}  // namespace

uint32_t shared_address(const void* pointer) {
  const AccessState& s = access_state();
  return kFirstAddress + static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pointer) - s.shared);
}

void multiply_group(const GroupProduct& product) {
  products().used = true;
  GroupProduct payload = product;
  group_operation(kProduct, &payload, multiply_all);
}

void open_products() {
  products().used = true;
  of_lane(static_cast<size_t>(current_lane())).fenced = true;
}

void close_products() {
  LaneProducts& own = of_lane(static_cast<size_t>(current_lane()));
  own.closed.push_back(std::exchange(own.open, 0));
  own.fenced = false;
}

void wait_for_products(int pending_groups) {
  warp_operation("wgmma.wait_group", 0xFFFFFFFF, nullptr, end_groups, pending_groups);
}

void check_registers(const void* address, size_t bytes) {
  if (!products().used) return;
  const auto at = reinterpret_cast<uintptr_t>(address);
  for (const Sums& sums : of_lane(static_cast<size_t>(current_lane())).sums) {
    const auto begin = reinterpret_cast<uintptr_t>(sums.c);
    if (at + bytes > begin && at < begin + sums.values.size() * sizeof(float)) {
      violation("touches sums of wgmma that were not waited for");
    }
  }
}

void forget_products() {
  Products& all = products();
  if (!std::exchange(all.used, false)) return;
  for (LaneProducts& lane : all.lanes) lane = {};
}

}  // namespace tessera::simt
