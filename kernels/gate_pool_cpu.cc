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

/// Everything of one block that a task needs.
struct BlockPlace {
  int64_t tokens;     // of the block; 0 for a number beyond the last block
  int64_t first_row;  // its first token among the tokens of all groups
  int64_t first_key;  // its first row of kbar among the rows of all groups
};

BlockPlace place_block(const SegmentGrid& grid, int64_t group, int64_t block, int64_t gate_keys) {
  const int64_t first_key = (group * grid.max_blocks() + block) * gate_keys;
  if (block >= block_count(grid)) return {0, 0, first_key};
  const GridRange range = find_block(grid, block);
  return {range.tokens, group * grid.tokens() + range.first, first_key};
}

/// The gradient of one part; adds to dr.
template <class T>
void part_backward(const GatePoolBackward& a, int64_t group, int64_t first_row, int64_t rows,
                   int64_t key, float* dr) {
  const int64_t d = a.k0.shape()[2];
  const T* k0 = a.k0.as<T>().data() + first_row * d;
  const float* alpha = a.alpha.as<float>().data() + first_row;
  const float* dkbar = a.dkbar.as<float>().data() + key * d;
  const float* r = a.r.as<float>().data() + group * d;
  const float at_mean = dot(a.kbar.as<T>().data() + key * d, dkbar, d);
  for (int64_t j = 0; j < rows; ++j) {
    const float e = alpha[j] * (dot(k0 + j * d, dkbar, d) - at_mean);
    add_scaled(dr, k0 + j * d, e, d);
    if (a.dk0.empty()) continue;
    float* dk0 = a.dk0.as<float>().data() + (first_row + j) * d;
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
  const int64_t blocks = a.grid.max_blocks();
  const int64_t rows = a.grid.block / a.gate_keys;
  with_float_type(a.k0.dtype(), [&]<class T>() {
    const T* k0 = a.k0.as<T>().data();
    const float* r = a.r.as<float>().data();
    float* alpha = a.alpha.as<float>().data();
    T* kbar = a.kbar.as<T>().data();
    threads.for_each(groups * blocks, [&](int64_t task) {
      const int64_t group = task / blocks;
      const BlockPlace place = place_block(a.grid, group, task % blocks, a.gate_keys);
      std::fill_n(kbar + place.first_key * d, a.gate_keys * d, T{});
      if (place.tokens < a.grid.block) {
        std::fill_n(alpha + place.first_row, place.tokens, 0.0f);
        return;
      }
      for (int64_t part = 0; part < a.gate_keys; ++part) {
        const int64_t first = place.first_row + part * rows;
        weigh(alpha + first, k0 + first * d, r + group * d, rows, d);
        T* mean = kbar + (place.first_key + part) * d;
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
  const int64_t blocks = a.grid.max_blocks();
  const int64_t rows = a.grid.block / a.gate_keys;
  const int64_t tasks = (blocks + kBlocksPerTask - 1) / kBlocksPerTask;
  std::vector<float> sums(static_cast<size_t>(groups * tasks * d));
  with_float_type(a.k0.dtype(), [&]<class T>() {
    threads.for_each(groups * tasks, [&](int64_t task) {
      const int64_t group = task / tasks;
      const int64_t begin = task % tasks * kBlocksPerTask;
      for (int64_t block = begin; block < std::min(blocks, begin + kBlocksPerTask); ++block) {
        const BlockPlace place = place_block(a.grid, group, block, a.gate_keys);
        if (place.tokens < a.grid.block) {
          if (!a.dk0.empty()) {
            std::fill_n(a.dk0.as<float>().data() + place.first_row * d, place.tokens * d, 0.0f);
          }
          continue;
        }
        for (int64_t part = 0; part < a.gate_keys; ++part) {
          part_backward<T>(a, group, place.first_row + part * rows, rows, place.first_key + part,
                           sums.data() + task * d);
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
