#include <algorithm>
#include <array>

#include "kernels/core/grain.h"
#include "kernels/core/simd.h"
#include "kernels/embedding.h"
#include "kernels/token_smear.h"

namespace tessera::cpu {

namespace {

/// Entries of the table, by place and token.
struct Rows {
  std::span<const int32_t> before;
  int64_t tokens;
  int64_t first;
  int64_t rows;

  /// -1: another shard's, or none.
  int64_t of(int64_t j, int64_t t) const {
    const int32_t id = before[static_cast<size_t>(j * tokens + t)];
    const int64_t row = id - first;
    return id >= 0 && row >= 0 && row < rows ? row : -1;
  }
};

template <class Args>
Rows checked_rows(const Args& a) {
  const int64_t rows = a.table.shape()[0];
  const auto before = a.before.template as<int32_t>();
  check_ids(before, -1, a.vocabulary > 0 ? a.vocabulary : rows);
  return {.before = before, .tokens = a.before.shape()[1], .first = a.first, .rows = rows};
}

}  // namespace

void token_smear_forward(ThreadPool& threads, const TokenSmearForward& a) {
  const Rows rows = checked_rows(a);
  const int64_t n = a.weight.shape()[0];
  const int64_t dim = a.weight.shape()[1];
  with_float_type(a.table.dtype(), [&]<class T>() {
    const T* const table = a.table.as<T>().data();
    const T* const weight = a.weight.as<T>().data();
    T* const y = a.y.as<T>().data();
    threads.for_ranges(rows.tokens, row_grain(n * dim), [=](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        T* const to = y + t * dim;
        for_lanes(dim, [=](int64_t d, int64_t lanes) {
          F32x16 sum = load_first(to + d, lanes);
          for (int64_t j = 0; j < n; ++j) {
            const int64_t row = rows.of(j, t);
            if (row < 0) continue;
            const F32x16 of_row = load_first(table + row * dim + d, lanes);
            sum += load_first(weight + j * dim + d, lanes) * of_row;
          }
          store_first(to + d, sum, lanes);
        });
      }
    });
  });
}

void token_smear_weights(ThreadPool& threads, const TokenSmearBackward& a) {
  // Tasks are ranges of columns: each adds all tokens in order, in chunks whose sums are added,
  // so that rounding grows with the chunks alone.
  constexpr int64_t kColumns = 128;
  constexpr int64_t kChunk = 256;
  const Rows rows = checked_rows(a);
  const int64_t n = a.weight.shape()[0];
  const int64_t dim = a.weight.shape()[1];
  with_float_type(a.table.dtype(), [&]<class T>() {
    const T* const table = a.table.as<T>().data();
    const T* const dy = a.dy.as<T>().data();
    float* const dweight = a.dweight.as<float>().data();
    const int64_t ranges = (dim + kColumns - 1) / kColumns;
    threads.for_each(n * ranges, [=](int64_t task) {
      const int64_t j = task / ranges;
      const int64_t begin = task % ranges * kColumns;
      const int64_t columns = std::min(kColumns, dim - begin);
      std::array<float, kColumns> sums;
      for (int64_t chunk = 0; chunk < rows.tokens; chunk += kChunk) {
        sums.fill(0);
        for (int64_t t = chunk; t < std::min(chunk + kChunk, rows.tokens); ++t) {
          const int64_t row = rows.of(j, t);
          if (row < 0) continue;
          const T* const gradient = dy + t * dim + begin;
          const T* const entry = table + row * dim + begin;
          for_lanes(columns, [&](int64_t d, int64_t lanes) {
            const F32x16 product = load_first(gradient + d, lanes) * load_first(entry + d, lanes);
            store_first(sums.data() + d, load_first(sums.data() + d, lanes) + product, lanes);
          });
        }
        for (int64_t d = 0; d < columns; ++d) {
          dweight[j * dim + begin + d] += sums[static_cast<size_t>(d)];
        }
      }
    });
  });
}

}  // namespace tessera::cpu
