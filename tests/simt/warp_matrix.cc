#include "tests/simt/warp_matrix.h"

#include <array>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "tests/simt/block_runner.h"
#include "tests/simt/memory_checks.h"

namespace tessera::simt {
namespace {

constexpr uint32_t kAll = 0xFFFFFFFF;

struct Matrices {
  const void* row;
  uint32_t* part;
};

void read_matrices(void* const payloads[32], int transposed) {
  std::array<std::array<std::array<uint16_t, 8>, 8>, 4> matrices;  // [matrix][row][column]
  for (size_t lane = 0; lane < 32; ++lane) {
    const void* const row = static_cast<Matrices*>(payloads[lane])->row;
    check_read_by_warp(row, 16);  // now that all lanes are here, and have waited as they had to
    std::memcpy(matrices[lane / 8][lane % 8].data(), row, 16);
  }
  for (size_t lane = 0; lane < 32; ++lane) {
    uint32_t* const part = static_cast<Matrices*>(payloads[lane])->part;
    const size_t line = lane / 4;
    const size_t pair = 2 * (lane % 4);
    for (size_t i = 0; i < 4; ++i) {
      const auto& m = matrices[i];
      const uint32_t low = transposed != 0 ? m[pair][line] : m[line][pair];
      const uint32_t high = transposed != 0 ? m[pair + 1][line] : m[line][pair + 1];
      part[i] = low | high << 16;
    }
  }
}

struct Product {
  float* c;
  const uint32_t* a;
  std::array<uint32_t, 2> b;
};

float bf16_half(uint32_t word, size_t half) {
  return std::bit_cast<float>(half == 0 ? word << 16 : word & 0xFFFF0000);
}

/// a [16, depth] and b [depth, 8], gathered from the lanes.
struct Operands {
  std::array<std::array<double, 16>, 16> a{};
  std::array<std::array<double, 8>, 16> b{};
};

void gather_bf16(Operands& all, size_t lane, const Product& p) {
  const size_t group = lane / 4;
  const size_t pair = 2 * (lane % 4);
  for (size_t half = 0; half < 2; ++half) {
    for (size_t i = 0; i < 4; ++i) {
      all.a[group + 8 * (i % 2)][pair + 8 * (i / 2) + half] = bf16_half(p.a[i], half);
    }
    for (size_t i = 0; i < 2; ++i) all.b[pair + 8 * i + half][group] = bf16_half(p.b[i], half);
  }
}

void gather_tf32(Operands& all, size_t lane, const Product& p) {
  const size_t group = lane / 4;
  const size_t at = lane % 4;
  // The lower 13 bits are not looked at by the hardware.
  const auto value = [](uint32_t bits) { return std::bit_cast<float>(bits & ~uint32_t{0x1FFF}); };
  for (size_t i = 0; i < 4; ++i) all.a[group + 8 * (i % 2)][at + 4 * (i / 2)] = value(p.a[i]);
  for (size_t i = 0; i < 2; ++i) all.b[at + 4 * i][group] = value(p.b[i]);
}

void multiply_all(void* const payloads[32], int factors) {
  const bool bf16 = static_cast<Factors>(factors) == Factors::kBf16;
  const size_t depth = bf16 ? 16 : 8;
  Operands all;
  for (size_t lane = 0; lane < 32; ++lane) {
    const auto& product = *static_cast<Product*>(payloads[lane]);
    bf16 ? gather_bf16(all, lane, product) : gather_tf32(all, lane, product);
  }
  for (size_t lane = 0; lane < 32; ++lane) {
    float* const c = static_cast<Product*>(payloads[lane])->c;
    for (size_t i = 0; i < 4; ++i) {
      const size_t row = lane / 4 + 8 * (i / 2);
      const size_t column = 2 * (lane % 4) + i % 2;
      double sum = c[i];
      for (size_t k = 0; k < depth; ++k) sum += all.a[row][k] * all.b[k][column];
      c[i] = static_cast<float>(sum);
    }
  }
}

struct Copy {
  void* to;
  std::array<unsigned char, 16> bytes;
};
/// Groups of copies of one lane, the oldest first.
struct Copies {
  std::vector<std::vector<Copy>> closed;
  std::vector<Copy> open;
};
std::vector<Copies>& copies() {
  thread_local std::vector<Copies> of_lanes(1024);
  return of_lanes;
}
Copies& own_copies() {
  return copies()[static_cast<size_t>(current_lane())];
}

}  // namespace

void load_matrices(uint32_t (&part)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) violation("ldmatrix of a row not aligned to 16");
  check_access(row, 16, Access::kRead);
  Matrices all{row, part};
  warp_operation("ldmatrix", kAll, &all, read_matrices, transposed);
}

void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Factors factors) {
  Product product{c, a, {b0, b1}};
  warp_operation("mma.sync", kAll, &product, multiply_all, static_cast<int>(factors));
}

void start_copy(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0)) {
    violation("cp.async of 16 bytes to or from an address not aligned to 16");
  }
  Copy copy{shared, {}};
  if (valid) {
    check_access(global, 16, Access::kRead);
    std::memcpy(copy.bytes.data(), global, 16);
  }
  asynchronous_copy_starts(shared, 16);
  own_copies().open.push_back(copy);
}

void close_copies() {
  Copies& own = own_copies();
  own.closed.push_back(std::move(own.open));
  own.open.clear();
}

void wait_for_copies(int pending_groups) {
  Copies& own = own_copies();
  while (own.closed.size() > static_cast<size_t>(pending_groups)) {
    for (const Copy& copy : own.closed.front()) {
      asynchronous_copy_ends(copy.to, 16);
      std::memcpy(copy.to, copy.bytes.data(), 16);
    }
    own.closed.erase(own.closed.begin());
  }
}

void forget_copies() {
  for (Copies& lane : copies()) {
    lane.closed.clear();
    lane.open.clear();
  }
}

}  // namespace tessera::simt
