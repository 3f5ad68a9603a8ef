#include "kernels/core/device_check.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/gate_tree.h"

// At most one page of each sequence at a time, while decoding: what it costs is the launch. The
// pages of a prompt come at once, and each waits for the one before.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 64;

struct Pages {
  float* nodes;           // [groups, sequences, tree_rows(pages), gate_dim]
  const float* kt;        // [groups, sequences, pages, gate_dim]
  const int32_t* places;  // [inserted]
  const int32_t* numbers;
  int64_t inserted;
  int64_t sequences;
  int64_t pages;
  int64_t sink_blocks;
  int64_t radix;
  int gate_dim;
};

/// A block of lanes per group and sequence. A lane writes, and reads again, its own dimensions
/// only.
__global__ void __launch_bounds__(kThreads) insert_leaves(Pages a) {
  const TreeLayout layout(a.pages - a.sink_blocks, a.radix);
  const int64_t r = a.radix;
  const int64_t levels = layout.levels();
  const float share = 1.0f / static_cast<float>(r);
  const int64_t sequence = blockIdx.y;
  const int64_t place = int64_t{blockIdx.x} * a.sequences + sequence;
  float* const nodes = a.nodes + place * tree_rows(a.pages) * a.gate_dim;
  for (int64_t i = 0; i < a.inserted; ++i) {
    const int64_t page = a.numbers[i];
    device_check(a.places[i] >= 0 && a.places[i] < a.sequences && page >= -1 && page < a.pages,
                 "insert_pages: a place or a page is outside of kt");
    if (a.places[i] != sequence || page < a.sink_blocks) continue;
    const float* const key = a.kt + (place * a.pages + page) * a.gate_dim;
    for (int64_t d = threadIdx.x; d < a.gate_dim; d += kThreads) {
      int64_t node = page - a.sink_blocks;
      float x = key[d];
      for (int64_t level = 0; level < levels; ++level, node /= r) {
        float* const family = nodes + (layout.first_row(level) + node / r * r) * a.gate_dim + d * r;
        family[node % r] = x;
        if (node % r == 0) {
          for (int64_t e = 1; e < r; ++e) family[e] = 0;
        }
        if (node % r != r - 1) break;
        x = 0;
        for (int64_t e = 0; e < r; ++e) x = __fadd_rn(x, family[e]);
        x = __fmul_rn(x, share);
      }
    }
  }
}

}  // namespace

void insert_pages(Stream& stream, const InsertPages& a) {
  const Shape& shape = a.kt.shape();
  launch(stream, insert_leaves,
         dim3(static_cast<unsigned>(shape[0]), static_cast<unsigned>(shape[1])), kThreads, 0,
         Pages{.nodes = a.nodes.as<float>().data(),
               .kt = a.kt.as<float>().data(),
               .places = a.places.as<int32_t>().data(),
               .numbers = a.numbers.as<int32_t>().data(),
               .inserted = a.numbers.elements(),
               .sequences = shape[1],
               .pages = shape[2],
               .sink_blocks = a.sink_blocks,
               .radix = a.tree.radix,
               .gate_dim = static_cast<int>(shape[3])});
}

}  // namespace tessera::gpu
