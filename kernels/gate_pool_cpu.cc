// Bound by the bandwidth of reading k0: twice in forward and in backward, the second time from
// the cache, since a part is at most a block.

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/core/fast_math.h"
#include "kernels/core/simd.h"
#include "kernels/gate_pool.h"

namespace tessera::cpu {

namespace {

template <class A, class B>
float dot(const A* a, const B* b, int64_t d) {
  F32x16 products{};
  for (int64_t i = 0; i < d; i += kLanes) {
    products += load_first(a + i, d - i) * load_first(b + i, d - i);
  }
  return sum(products);
}

/// y += factor * x.
template <class X>
void add_scaled(float* y, const X* x, float factor, int64_t d) {
  for (int64_t i = 0; i < d; i += kLanes) {
    store_first(y + i, load_first(y + i, d - i) + factor * load_first(x + i, d - i), d - i);
  }
}

/// alpha[j] = softmax_j(r . k0_j) over the rows of a part.
template <class T>
void weigh(float* alpha, const T* k0, const float* r, int64_t rows, int64_t d) {
  float highest = -std::numeric_limits<float>::infinity();
  for (int64_t j = 0; j < rows; ++j) {
    alpha[j] = dot(k0 + j * d, r, d);
    highest = std::max(highest, alpha[j]);
  }
  float total = 0;
  for (int64_t j = 0; j < rows; ++j) {
    alpha[j] = fast_exp(alpha[j] - highest);
    total += alpha[j];
  }
  for (int64_t j = 0; j < rows; ++j) alpha[j] /= total;
}

/// Whether a block is pooled by this grid: it is complete, and its last token is a query here.
bool pooled_here(const SegmentGrid& grid, int64_t segment, int64_t number) {
  const Stretches pieces = pieces_of(grid);
  const int64_t last = (number + 1) * grid.block - 1;
  for (int64_t i = pieces.begin_of(segment); i < pieces.begin_of(segment + 1); ++i) {
    if (last >= pieces.first(i) && last < pieces.end(i)) return true;
  }
  return false;
}

constexpr int64_t kElsewhere = -1;

/// Row of the first key of a block that is pooled here, kElsewhere of another one; `block` may be
/// beyond the last block.
int64_t first_row(const SegmentGrid& grid, int64_t block) {
  if (block >= block_count(grid)) return kElsewhere;
  const GridRange range = find_block(grid, block);
  if (!pooled_here(grid, range.segment, range.number)) return kElsewhere;
  CHECK(range.tokens == grid.block, "gate_pool: of block ", range.number, " of segment ",
        range.segment, " ", range.tokens, " keys are in one run, expected all ", grid.block);
  return range.first;
}

/// Blocks that kbar has room for.
int64_t blocks_of(const SegmentGrid& grid, const ConstTensorView& kbar, int64_t gate_keys) {
  const int64_t blocks = kbar.shape()[1] / gate_keys;
  CHECK(block_count(grid) <= blocks, "gate_pool: kbar has room for ", blocks,
        " blocks, expected at least ", block_count(grid));
  return blocks;
}

/// Sets x [groups, keys, width] to 0 at the keys of blocks that are not pooled here.
void clear_elsewhere(ThreadPool& threads, const SegmentGrid& grid, const TensorView& x,
                     int64_t width) {
  const Stretches runs = runs_of(grid);
  const int64_t parts = part_bound(runs, grid.block);
  threads.for_each(x.shape()[0] * parts, [&](int64_t task) {
    const StretchPart part = find_part(runs, grid.block, task % parts);
    const int64_t number = part.first / grid.block;
    if (part.count == 0 || pooled_here(grid, runs.segment(part.stretch), number)) return;
    const int64_t row = task / parts * grid.keys() + runs.origin(part.stretch) + part.first;
    std::fill_n(x.as<float>().data() + row * width, part.count * width, 0.0f);
  });
}

/// The gradient of one part; adds to dr.
template <class T>
void part_backward(const GatePoolBackward& a, int64_t group, int64_t first, int64_t rows,
                   int64_t key, float* dr) {
  const int64_t d = a.k0.shape()[2];
  const T* k0 = a.k0.as<T>().data() + first * d;
  const float* alpha = a.alpha.as<float>().data() + first;
  const float* dkbar = a.dkbar.as<float>().data() + key * d;
  const float* r = a.r.as<float>().data() + group * d;
  const float at_mean = dot(a.kbar.as<T>().data() + key * d, dkbar, d);
  for (int64_t j = 0; j < rows; ++j) {
    const float e = alpha[j] * (dot(k0 + j * d, dkbar, d) - at_mean);
    add_scaled(dr, k0 + j * d, e, d);
    if (a.dk0.empty()) continue;
    float* dk0 = a.dk0.as<float>().data() + (first + j) * d;
    for (int64_t i = 0; i < d; i += kLanes) {
      const F32x16 both = alpha[j] * load_first(dkbar + i, d - i) + e * load_first(r + i, d - i);
      store_first(dk0 + i, both, d - i);
    }
  }
}

}  // namespace

void gate_pool_forward(ThreadPool& threads, const GatePoolForward& a) {
  const int64_t groups = a.k0.shape()[0];
  const int64_t d = a.k0.shape()[2];
  const int64_t blocks = blocks_of(a.grid, a.kbar, a.gate_keys);
  const int64_t rows = a.grid.block / a.gate_keys;
  clear_elsewhere(threads, a.grid, a.alpha, 1);
  with_float_type(a.k0.dtype(), [&]<class T>() {
    const T* k0 = a.k0.as<T>().data();
    const float* r = a.r.as<float>().data();
    float* alpha = a.alpha.as<float>().data();
    T* kbar = a.kbar.as<T>().data();
    threads.for_each(groups * blocks, [&](int64_t task) {
      const int64_t group = task / blocks;
      std::fill_n(kbar + task * a.gate_keys * d, a.gate_keys * d, T{});
      const int64_t row = first_row(a.grid, task % blocks);
      if (row == kElsewhere) return;
      for (int64_t part = 0; part < a.gate_keys; ++part) {
        const int64_t first = group * a.grid.keys() + row + part * rows;
        weigh(alpha + first, k0 + first * d, r + group * d, rows, d);
        T* mean = kbar + (task * a.gate_keys + part) * d;
        for (int64_t i = 0; i < d; i += kLanes) {
          F32x16 total{};
          for (int64_t j = 0; j < rows; ++j) {
            total += alpha[first + j] * load_first(k0 + (first + j) * d + i, d - i);
          }
          store_first(mean + i, total, d - i);
        }
      }
    });
  });
}

void gate_pool_backward(ThreadPool& threads, const GatePoolBackward& a) {
  // Every task sums dr over its own blocks; the sums are added in their order.
  constexpr int64_t kBlocksPerTask = 16;
  const int64_t groups = a.k0.shape()[0];
  const int64_t d = a.k0.shape()[2];
  const int64_t blocks = blocks_of(a.grid, a.kbar, a.gate_keys);
  const int64_t rows = a.grid.block / a.gate_keys;
  const int64_t tasks = (blocks + kBlocksPerTask - 1) / kBlocksPerTask;
  if (!a.dk0.empty()) clear_elsewhere(threads, a.grid, a.dk0, d);
  std::vector<float> sums(static_cast<size_t>(groups * tasks * d));
  with_float_type(a.k0.dtype(), [&]<class T>() {
    threads.for_each(groups * tasks, [&](int64_t task) {
      const int64_t group = task / tasks;
      const int64_t begin = task % tasks * kBlocksPerTask;
      for (int64_t block = begin; block < std::min(blocks, begin + kBlocksPerTask); ++block) {
        const int64_t row = first_row(a.grid, block);
        if (row == kElsewhere) continue;
        for (int64_t part = 0; part < a.gate_keys; ++part) {
          part_backward<T>(a, group, group * a.grid.keys() + row + part * rows, rows,
                           (group * blocks + block) * a.gate_keys + part, sums.data() + task * d);
        }
      }
    });
  });
  if (a.dr.empty()) return;
  float* dr = a.dr.as<float>().data();
  for (int64_t task = 0; task < groups * tasks; ++task) {
    for (int64_t i = 0; i < d; ++i)
      dr[task / tasks * d + i] += sums[static_cast<size_t>(task * d + i)];
  }
}

}  // namespace tessera::cpu
