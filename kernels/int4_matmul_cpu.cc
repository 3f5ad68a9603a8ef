#include <algorithm>
#include <vector>

#include "kernels/block_matmul.h"
#include "kernels/int4_dot.h"
#include "kernels/int4_matmul.h"

// Of few rows memory sets the pace: 4.5 bits per weight, each unpacked once for up to kMostRows
// rows. Of more rows the weights of some columns are unpacked to memory, and block_matmul goes on.
// Rows are put into the order of the codes before.

namespace tessera::cpu {

namespace {

constexpr int64_t kRun = Int4Weights::kRun;
constexpr int kMostRows = 8;      // that are multiplied as they are
constexpr int64_t kColumns = 32;  // of a task

/// Rows of a in the order of the codes, and the sums of their runs.
template <class T>
struct Inputs {
  Inputs(const T* a, int64_t rows, int64_t k)
      : numbers(static_cast<size_t>(rows * k)), sums(static_cast<size_t>(rows * k / kRun)) {
    for (int64_t run = 0; run < rows * k / kRun; ++run) {
      T* const to = numbers.data() + run * kRun;
      float sum = 0;
      for (int64_t byte = 0; byte < kRun / 2; ++byte) {
        to[byte] = a[run * kRun + int4_number(byte)];
        to[kRun / 2 + byte] = a[run * kRun + int4_number(byte) + kRun / 2];
        sum += to_float(to[byte]) + to_float(to[kRun / 2 + byte]);
      }
      sums[static_cast<size_t>(run)] = sum;
    }
  }

  std::vector<T> numbers;   // [rows, k]
  std::vector<float> sums;  // [rows, k / 64]
};

/// A group's part of a product.
struct Part {
  const uint8_t* codes;  // [n, k / 2]
  const BF16* scales;    // [n, k / 64, 2]
  int64_t first_row;
  int64_t rows;
};

/// Columns [begin, end) of rows [first, first + kRows).
template <int kRows, class T, class C>
void some_rows(const Int4Matmul& a, const Part& part, const Inputs<T>& inputs, int64_t first,
               int64_t begin, int64_t end) {
  const int64_t n = a.c.shape()[1];
  const int64_t k = a.a.shape()[1];
  for (int64_t j = begin; j < end; ++j) {
    const auto found = int4_dot<kRows>(part.codes + j * k / 2, part.scales + j * k / kRun * 2,
                                       inputs.numbers.data() + first * k,
                                       inputs.sums.data() + first * (k / kRun), k);
    for (int64_t i = 0; i < kRows; ++i) {
      C& to = a.c.as<C>()[static_cast<size_t>((first + i) * n + j)];
      to = from_float<C>(found[static_cast<size_t>(i)] + (a.accumulate ? to_float(to) : 0));
    }
  }
}

/// As some_rows, of all rows of a part: kRows or fewer.
template <int kRows, class T, class C>
void few_rows(const Int4Matmul& a, const Part& part, const Inputs<T>& inputs, int64_t begin,
              int64_t end) {
  if constexpr (kRows > 1) {
    if (part.rows < kRows) return few_rows<kRows - 1, T, C>(a, part, inputs, begin, end);
  }
  some_rows<kRows, T, C>(a, part, inputs, part.first_row, begin, end);
}

template <class T>
void many_rows(const Int4Matmul& a, const Part& part, const Inputs<T>& inputs, int64_t begin,
               int64_t end) {
  thread_local std::vector<T> unpacked;
  const int64_t n = a.c.shape()[1];
  const int64_t k = a.a.shape()[1];
  const int64_t columns = end - begin;
  unpacked.resize(static_cast<size_t>(columns * k));
  for (int64_t run = 0; run < columns * k / kRun; ++run) {
    const int64_t of_part = begin * k / kRun + run;
    const BF16* const pair = part.scales + 2 * of_part;
    Int4Codes(part.codes + of_part * kRun / 2)
        .unpack(broadcast(to_float(pair[0])), broadcast(to_float(pair[1])),
                unpacked.data() + run * kRun);
  }
  char* const c = static_cast<char*>(a.c.data());
  block_matmul({.c = c + (part.first_row * n + begin) * size_of(a.c.dtype()),
                .a = inputs.numbers.data() + part.first_row * k,
                .b = unpacked.data(),
                .m = part.rows,
                .n = columns,
                .k = k,
                .c_stride = n,
                .a_stride = k,
                .b_stride = k,
                .c_dtype = a.c.dtype(),
                .dtype = a.a.dtype(),
                .transpose_b = true,
                .accumulate = a.accumulate});
}

/// The groups that have rows.
std::vector<Part> parts_with_rows(const Int4Matmul& a) {
  const int64_t matrix = a.w.n() * a.w.k();
  const auto part = [&](int64_t group, int64_t first, int64_t rows) {
    return Part{.codes = a.w.codes.as<uint8_t>().data() + group * matrix / 2,
                .scales = a.w.scales.as<BF16>().data() + group * matrix / kRun * 2,
                .first_row = first,
                .rows = rows};
  };
  const int64_t rows = a.a.shape()[0];
  if (a.offsets.empty()) return {part(0, 0, rows)};
  std::vector<Part> parts;
  const auto offsets = a.offsets.as<int32_t>();
  for (int64_t group = 0; group < a.w.groups(); ++group) {
    const int64_t first = offsets[static_cast<size_t>(group)];
    const int64_t end = offsets[static_cast<size_t>(group) + 1];
    CHECK(first >= 0 && first <= end && end <= rows, "int4_matmul: offsets have ", first, ", ", end,
          ", expected ascending numbers up to the ", rows, " rows");
    if (end > first) parts.push_back(part(group, first, end - first));
  }
  return parts;
}

}  // namespace

void int4_matmul(ThreadPool& threads, const Int4Matmul& a) {
  const std::vector<Part> parts = parts_with_rows(a);
  const int64_t n = a.c.shape()[1];
  const int64_t tiles = parts_of(n, kColumns);
  with_float_type(a.a.dtype(), [&]<class T>() {
    const Inputs<T> inputs(a.a.as<T>().data(), a.a.shape()[0], a.a.shape()[1]);
    threads.for_each(std::ssize(parts) * tiles, [&](int64_t task) {
      const Part& part = parts[static_cast<size_t>(task / tiles)];
      const int64_t begin = task % tiles * kColumns;
      const int64_t end = std::min(n, begin + kColumns);
      if (part.rows > kMostRows) return many_rows(a, part, inputs, begin, end);
      with_float_type(a.c.dtype(),
                      [&]<class C>() { few_rows<kMostRows, T, C>(a, part, inputs, begin, end); });
    });
  });
}

}  // namespace tessera::cpu
