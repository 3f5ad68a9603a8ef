#include "kernels/core/launch.cuh"
#include "kernels/gate_tree.h"

// One page at a time, while decoding: what it costs is the launch.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 64;

struct Page {
  float* nodes;     // [groups, sequences, tree_rows(pages), gate_dim]
  const float* kt;  // [groups, sequences, pages, gate_dim]
  int64_t sequences;
  int64_t sequence;
  int64_t pages;
  int64_t page;
  int64_t sink_blocks;
  int64_t radix;
  int gate_dim;
};

/// A block of lanes per group. A lane writes, and reads again, its own dimensions only.
__global__ void __launch_bounds__(kThreads) insert_leaf(Page a) {
  const TreeLayout layout(a.pages - a.sink_blocks, a.radix);
  const int64_t r = a.radix;
  const int64_t levels = layout.levels();
  const float share = 1.0f / static_cast<float>(r);
  const int64_t place = int64_t{blockIdx.x} * a.sequences + a.sequence;
  float* const nodes = a.nodes + place * tree_rows(a.pages) * a.gate_dim;
  const float* const key = a.kt + (place * a.pages + a.page) * a.gate_dim;
  for (int64_t d = threadIdx.x; d < a.gate_dim; d += kThreads) {
    int64_t node = a.page - a.sink_blocks;
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

}  // namespace

void insert_page(Stream& stream, const InsertPage& a) {
  if (a.page < a.sink_blocks) return;
  const Shape& shape = a.kt.shape();
  launch(stream, insert_leaf, dim3(static_cast<unsigned>(shape[0])), kThreads, 0,
         Page{.nodes = a.nodes.as<float>().data(),
              .kt = a.kt.as<float>().data(),
              .sequences = shape[1],
              .sequence = a.sequence,
              .pages = shape[2],
              .page = a.page,
              .sink_blocks = a.sink_blocks,
              .radix = a.tree.radix,
              .gate_dim = static_cast<int>(shape[3])});
}

}  // namespace tessera::gpu
