#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <span>

#include "kernels/core/grain.h"
#include "kernels/core/simd.h"
#include "kernels/permute_tokens.h"

namespace tessera::cpu {

namespace {

// Indices come from a kernel or over the network, not from a person; a wrong one would read and
// write anywhere.
void check_indices(const char* what, std::span<const int32_t> indices, int64_t limit,
                   int32_t least = 0) {
  for (const int32_t index : indices) {
    CHECK(index >= least && index < limit, what, " has ", index, ", expected ", least, " to ",
          limit - 1);
  }
}

// Rows are moved by source_of here and by row_of on a GPU: both have to say the same.
void check_inverse(std::span<const int32_t> row_of, std::span<const int32_t> source_of) {
  const auto rows = static_cast<int64_t>(source_of.size());
  check_indices("gather_rows: row_of", row_of, rows, -1);
  int64_t kept = 0;
  for (size_t pair = 0; pair < row_of.size(); ++pair) {
    const int32_t row = row_of[pair];
    if (row < 0) continue;
    const int32_t source = source_of[static_cast<size_t>(row)];
    CHECK(source == static_cast<int64_t>(pair), "gather_rows: row_of has ", row, " for pair ", pair,
          ", but source_of has ", source, " for that row");
    ++kept;
  }
  CHECK(kept == rows, "gather_rows: row_of has ", kept, " rows, expected ", rows,
        ", those of source_of");
}

}  // namespace

// Two passes over a few thousand integers: not worth a second thread.
void sort_by_expert(ThreadPool&, const SortByExpert& a) {
  const auto experts = a.experts.as<int32_t>();
  const auto row_of = a.row_of.as<int32_t>();
  const auto source_of = a.source_of.as<int32_t>();
  const auto offsets = a.offsets.as<int32_t>();
  check_indices("sort_by_expert: experts", experts, static_cast<int64_t>(offsets.size()) - 1);
  const int64_t capacity = a.capacity > 0 ? a.capacity : std::numeric_limits<int64_t>::max();
  // offsets[e + 1] counts the rows of e, and so numbers them from 0; then it is their end.
  std::fill(offsets.begin(), offsets.end(), 0);
  for (size_t pair = 0; pair < experts.size(); ++pair) {
    int32_t& count = offsets[static_cast<size_t>(experts[pair]) + 1];
    row_of[pair] = count < capacity ? count++ : -1;
  }
  for (size_t e = 1; e < offsets.size(); ++e) offsets[e] += offsets[e - 1];
  for (size_t pair = 0; pair < experts.size(); ++pair) {
    if (row_of[pair] < 0) continue;
    row_of[pair] += offsets[static_cast<size_t>(experts[pair])];
    source_of[static_cast<size_t>(row_of[pair])] = static_cast<int32_t>(pair);
  }
  if (!a.dropped.empty()) {
    const auto kept = static_cast<size_t>(offsets.back());
    a.dropped.as<float>()[0] += static_cast<float>(experts.size() - kept);
  }
}

void gather_rows(ThreadPool& threads, const GatherRows& a) {
  const auto source_of = a.source_of.as<int32_t>();
  const int64_t dim = a.x.shape()[1];
  const auto row_bytes = static_cast<size_t>(dim * size_of(a.x.dtype()));
  check_indices("gather_rows: source_of", source_of, a.x.shape()[0] * a.slots);
  if (!a.row_of.empty()) check_inverse(a.row_of.as<int32_t>(), source_of);
  const auto* from = static_cast<const char*>(a.x.data());
  auto* to = static_cast<char*>(a.y.data());
  threads.for_ranges(a.y.shape()[0], row_grain(dim), [&](int64_t begin, int64_t end) {
    for (auto row = static_cast<size_t>(begin); row < static_cast<size_t>(end); ++row) {
      const auto token = static_cast<size_t>(source_of[row] / a.slots);
      std::memcpy(to + row * row_bytes, from + token * row_bytes, row_bytes);
    }
  });
}

// As sort_by_expert: passes over a few thousand integers.
void merge_expert_rows(ThreadPool&, const MergeExpertRows& a) {
  const auto counts = a.counts.as<int32_t>();
  const auto order = a.order.as<int32_t>();
  const auto offsets = a.offsets.as<int32_t>();
  int64_t rows = 0;
  for (const int32_t count : counts) {
    CHECK(count >= 0, "merge_expert_rows: counts has ", count, ", expected at least 0");
    rows += count;
  }
  CHECK(rows <= a.order.elements(), "merge_expert_rows: counts has ", rows,
        " rows, expected at most ", a.order.elements(), ", the elements of order");
  const size_t experts = offsets.size() - 1;
  std::fill(offsets.begin(), offsets.end(), 0);
  for (size_t i = 0; i < counts.size(); ++i) offsets[i % experts + 1] += counts[i];
  for (size_t e = 1; e < offsets.size(); ++e) offsets[e] += offsets[e - 1];
  // Placing a row moves offsets[e], the start, until it is the end of e, the start of e + 1.
  int32_t received = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    int32_t& row = offsets[i % experts];
    for (int32_t left = counts[i]; left > 0; --left) order[static_cast<size_t>(row++)] = received++;
  }
  std::copy_backward(offsets.begin(), offsets.end() - 1, offsets.end());
  offsets[0] = 0;
}

void scatter_rows(ThreadPool& threads, const ScatterRows& a) {
  const auto order = a.order.as<int32_t>();
  const int64_t dim = a.x.shape()[1];
  const auto row_bytes = static_cast<size_t>(dim * size_of(a.x.dtype()));
  check_indices("scatter_rows: order", order, a.y.shape()[0]);
  const auto* from = static_cast<const char*>(a.x.data());
  auto* to = static_cast<char*>(a.y.data());
  threads.for_ranges(a.x.shape()[0], row_grain(dim), [&](int64_t begin, int64_t end) {
    for (auto row = static_cast<size_t>(begin); row < static_cast<size_t>(end); ++row) {
      std::memcpy(to + static_cast<size_t>(order[row]) * row_bytes, from + row * row_bytes,
                  row_bytes);
    }
  });
}

void gather_sum(ThreadPool& threads, const GatherSum& a) {
  const auto rows = a.row_of.as<int32_t>();
  const int64_t k = a.row_of.shape()[1];
  const int64_t dim = a.x.shape()[1];
  check_indices("gather_sum: row_of", rows, a.x.shape()[0], -1);
  with_float_type(a.x.dtype(), [&]<class T>() {
    const T* x = a.x.as<T>().data();
    const T* base = a.base.empty() ? nullptr : a.base.as<T>().data();
    T* y = a.y.as<T>().data();
    threads.for_ranges(a.y.shape()[0], row_grain(dim * (k + 1)), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int32_t* row = rows.data() + t * k;
        for_lanes(dim, [&](int64_t d, int64_t lanes) {
          F32x16 sum{};
          if (base != nullptr) sum = load_first(base + t * dim + d, lanes);
          for (int64_t s = 0; s < k; ++s) {
            if (row[s] >= 0) sum += load_first(x + row[s] * dim + d, lanes);
          }
          store_first(y + t * dim + d, sum, lanes);
        });
      }
    });
  });
}

void permute_pairs(ThreadPool& threads, const PermutePairs& a) {
  const auto source_of = a.source_of.as<int32_t>();
  const auto x = a.x.as<float>();
  const auto y = a.y.as<float>();
  const auto rows = static_cast<int64_t>(source_of.size());
  const auto pairs = static_cast<int64_t>(a.inverse ? y.size() : x.size());
  check_indices("permute_pairs: source_of", source_of, pairs);
  if (a.inverse && rows < pairs) std::fill(y.begin(), y.end(), 0.0f);
  threads.for_ranges(rows, kGrain, [&](int64_t begin, int64_t end) {
    for (auto row = static_cast<size_t>(begin); row < static_cast<size_t>(end); ++row) {
      const auto pair = static_cast<size_t>(source_of[row]);
      if (a.inverse) {
        y[pair] = x[row];
      } else {
        y[row] = x[pair];
      }
    }
  });
}

}  // namespace tessera::cpu
