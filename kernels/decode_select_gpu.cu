#include <algorithm>

#include "kernels/block_choice.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/decode_attention.h"
#include "kernels/gate_score.h"
#include "kernels/gate_tree.cuh"

// Choosing pages for one token. Without a tree a lane scores a page: 4 gate_dim bytes per gate key,
// read once, all groups at the same time; then a warp per group chooses from the keys. With a tree
// a block of lanes per group goes down its levels. Sums have the order of gate_score.h, so choices
// are those of the CPU, and of training, to the last bit.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 128;
/// Keys up to this many are chosen from in shared memory.
constexpr int64_t kMostShared = 160 * 1024;

struct Select {
  int32_t* blocks;           // [groups, kept + 1]
  float* scores;             // [groups, kept + 1]
  int32_t* selected;         // [groups]
  int32_t* spans;            // [groups, most, 2]
  float* log_gates;          // [groups, most]
  int32_t* counts;           // [groups]
  int32_t* keys;             // scratch [groups, pages]
  const float* qt;           // [groups, gate_dim]
  const float* kt;           // [groups, pages * gate_keys, gate_dim]
  const float* nodes;        // [groups, tree_rows(pages), gate_dim]
  const int32_t* page_rows;  // [pages]
  const float* widths;       // [groups]
  TreeSearch tree;
  int64_t position;
  int64_t pages;
  float strength;
  float scale;  // gate_scale
  int block;
  int sink_blocks;
  int window_blocks;
  int kept;
  int most;
  int candidates;
  int gate_dim;
  int gate_keys;
};

/// gate_product of a key whose dimensions are `stride` floats apart.
__device__ float product(const float* q, const float* key, int stride, const Select& a) {
  float sum = 0;
  for (int d = 0; d < a.gate_dim; ++d) sum = __fmaf_rn(key[int64_t{d} * stride], q[d], sum);
  return __fmaf_rn(sum, a.scale, 0.0f);
}

/// score_key of gate_score, a lane per candidate.
__global__ void __launch_bounds__(kThreads) score_pages(Select a) {
  const auto i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= a.candidates) return;
  const int64_t group = blockIdx.y;
  const float* const q = a.qt + group * a.gate_dim;
  const int64_t first = (group * a.pages + a.sink_blocks + i) * a.gate_keys;
  const auto of_key = [&](int key) { return product(q, a.kt + (first + key) * a.gate_dim, 1, a); };
  float z = of_key(0);
  if (a.gate_keys > 1) {
    float largest = z;
    for (int key = 1; key < a.gate_keys; ++key) {
      const float x = of_key(key);
      largest = x > largest ? x : largest;
    }
    float sum = 0;
    for (int key = 0; key < a.gate_keys; ++key) sum += gate_exp(of_key(key) - largest);
    z = largest + gate_log(sum);
  }
  a.keys[group * a.pages + i] = score_key(z);
}

/// What the new token attends to, in ascending order, by a warp that has written the selection.
__device__ void list_spans(const Select& a, int64_t group) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int32_t* const blocks = a.blocks + group * (a.kept + 1);
  const float* const scores = a.scores + group * (a.kept + 1);
  const auto own = static_cast<int>(a.position / a.block);
  const int sinks = std::min(a.sink_blocks, own + 1);
  const int chosen = std::min(a.candidates, a.kept);
  const int window = std::max(sinks, own - a.window_blocks + 1);  // its first page
  const int count = sinks + chosen + own + 1 - window;
  for (int i = lane; i < count; i += kWarpSize) {
    const int slot = i - sinks;
    int page = i;
    float log_gate = 0;
    if (slot >= chosen) {
      page = window + slot - chosen;
    } else if (slot >= 0) {
      page = blocks[slot];
      const float u = (scores[slot] - scores[a.kept]) / a.widths[group];
      if (blocks[a.kept] >= 0 && !(u >= 1)) {
        log_gate = logf((1 - a.strength) + a.strength * fmaxf(u, 0.0f));
      }
    }
    const int64_t at = group * a.most + i;
    const int64_t left = a.position + 1 - int64_t{page} * a.block;
    a.spans[2 * at] = a.page_rows[page];
    a.spans[2 * at + 1] = static_cast<int32_t>(std::min<int64_t>(a.block, left));
    a.log_gates[at] = log_gate;
  }
  if (lane == 0) {
    a.selected[group] = chosen;
    a.counts[group] = count;
  }
}

__device__ SelectionRow selection_row(const Select& a, int64_t group) {
  const int64_t row = group * (a.kept + 1);
  return {a.blocks + row, a.scores + row, a.kept};
}

/// A block of lanes per group, of which one warp chooses. `in_shared`: where the keys are.
__global__ void __launch_bounds__(kThreads) choose_pages(Select a, bool in_shared) {
  const int64_t group = blockIdx.x;
  const int32_t* keys = a.keys + group * a.pages;
  if (in_shared) {
    SharedMemory shared;
    int32_t* const copy = shared.take<int32_t>(a.candidates);
    for (int i = static_cast<int>(threadIdx.x); i < a.candidates; i += kThreads) copy[i] = keys[i];
    keys = copy;
  }
  __syncthreads();
  if (threadIdx.x >= kWarpSize) return;
  const auto block_of = [&](int slot) { return a.sink_blocks + slot; };
  if (a.candidates <= a.kept) {
    write_all(selection_row(a, group), keys, a.candidates, block_of);
  } else {
    write_best(selection_row(a, group), keys, a.candidates, block_of);
  }
  __syncwarp();
  list_spans(a, group);
}

/// The way down one tree, by a block of lanes.
class TreeWalk {
 public:
  __device__ TreeWalk(const Select& a, SharedMemory& shared, int64_t group)
      : a_(a),
        layout_(a.pages - a.sink_blocks, a.tree.radix),
        radix_(static_cast<int>(a.tree.radix)),
        width_(static_cast<int>(a.tree.width(a.kept))),
        nodes_(a.nodes + group * tree_rows(a.pages) * a.gate_dim),
        query_(a.qt + group * a.gate_dim),
        keys_(shared.take<int32_t>(slots(a))),
        kept_(shared.take<int32_t>(width_)),
        next_(shared.take<int32_t>(width_)) {}

  /// Scored nodes of a level at most.
  __host__ __device__ static int slots(const Select& a) {
    return static_cast<int>((a.tree.width(a.kept) + 1) * a.tree.radix);
  }
  static int64_t shared_bytes(const Select& a) {
    return shared_bytes_of<int32_t>(slots(a)) + 2 * shared_bytes_of<int32_t>(a.tree.width(a.kept));
  }

  /// Returns how many leaves were scored: their keys are in keys(), and node_of names them.
  __device__ int run() {
    auto level = static_cast<int>(a_.tree.first_level(a_.candidates, a_.kept));
    int count = complete(level);
    for (;;) {
      score(level, count);
      __syncthreads();
      if (level == 0) return count;
      if (threadIdx.x < kWarpSize) keep(count);
      __syncthreads();
      std::swap(kept_, next_);
      parents_ = complete(level--);
      count = width_ * radix_ + complete(level) - parents_ * radix_;
    }
  }
  __device__ const int32_t* keys() const { return keys_; }
  /// Child of a kept family, or of the family without a complete parent.
  __device__ int node_of(int slot) const {
    if (parents_ < 0) return slot;
    const int place = slot / radix_;
    return (place < width_ ? kept_[place] : parents_) * radix_ + slot % radix_;
  }

 private:
  /// Nodes of a level that are complete for the token.
  __device__ int complete(int level) const {
    int nodes = a_.candidates;
    for (int l = 0; l < level; ++l) nodes /= radix_;
    return nodes;
  }
  __device__ void score(int level, int count) {
    const float* const all = nodes_ + layout_.first_row(level) * a_.gate_dim;
    for (int slot = static_cast<int>(threadIdx.x); slot < count; slot += kThreads) {
      const int node = node_of(slot);
      const float* const family = all + int64_t{node / radix_} * radix_ * a_.gate_dim;
      keys_[slot] = score_key(product(query_, family + node % radix_, radix_, a_));
    }
  }
  /// The `width` best nodes are the families of the level below: in next_.
  __device__ void keep(int count) {
    for_each_best(
        keys_, count, find_bound(keys_, count, width_), [&](int slot) { return node_of(slot); },
        [&](int node, int32_t, int rank) {
          if (rank >= 0) next_[rank] = node;
        });
  }

  const Select& a_;
  TreeLayout layout_;
  int radix_;
  int width_;
  const float* nodes_;
  const float* query_;
  int32_t* keys_;
  int32_t* kept_;
  int32_t* next_;
  int parents_ = -1;  // complete nodes of the level above; -1: all nodes are scored
};

__global__ void __launch_bounds__(kThreads) choose_in_tree(Select a) {
  const int64_t group = blockIdx.x;
  SharedMemory shared;
  TreeWalk walk(a, shared, group);
  const int count = walk.run();
  if (threadIdx.x >= kWarpSize) return;
  write_best(selection_row(a, group), walk.keys(), count,
             [&](int slot) { return a.sink_blocks + walk.node_of(slot); });
  __syncwarp();
  list_spans(a, group);
}

template <class T>
struct Pool {
  float* state;    // [groups, d + 2]
  T* kbar;         // [groups, d]
  const T* k0;     // [groups, d]
  const float* r;  // [groups, d]
  bool first;      // of its part
  bool last;
  int d;
};

/// A block of lanes per group.
template <class T>
__global__ void __launch_bounds__(kThreads) pool_token(Pool<T> a) {
  SharedMemory shared;
  float* const sums = shared.take<float>(kWarpSize);
  const int64_t group = blockIdx.x;
  float* const state = a.state + group * (a.d + 2);
  const T* const k0 = a.k0 + group * a.d;
  float sum = 0;
  for (int d = static_cast<int>(threadIdx.x); d < a.d; d += kThreads) {
    sum += to_float(k0[d]) * a.r[group * a.d + d];
  }
  const float e = block_sum(sum, sums);
  const float largest = a.first ? e : fmaxf(state[0], e);
  const float keep = a.first ? 0.0f : expf(state[0] - largest);
  const float weight = expf(e - largest);
  const float den = (a.first ? 0.0f : state[1] * keep) + weight;
  for (int d = static_cast<int>(threadIdx.x); d < a.d; d += kThreads) {
    const float num = (a.first ? 0.0f : state[2 + d] * keep) + weight * to_float(k0[d]);
    state[2 + d] = num;
    if (a.last) a.kbar[group * a.d + d] = from_float<T>(num / den);
  }
  __syncthreads();  // all have read the largest and den
  if (threadIdx.x == 0) {
    state[0] = largest;
    state[1] = den;
  }
}

}  // namespace

bool page_gate(Stream& stream, const PageGate& a) {
  const bool last = (a.position + 1) % a.part == 0;
  with_float_type(a.k0.dtype(), [&]<class T>() {
    launch(stream, pool_token<T>, dim3(static_cast<unsigned>(a.k0.shape()[0])), kThreads,
           shared_bytes_of<float>(kWarpSize),
           Pool<T>{.state = a.state.as<float>().data(),
                   .kbar = a.kbar.as<T>().data(),
                   .k0 = a.k0.as<T>().data(),
                   .r = a.r.as<float>().data(),
                   .first = a.position % a.part == 0,
                   .last = last,
                   .d = static_cast<int>(a.k0.shape()[1])});
  });
  return last;
}

void decode_select(Stream& stream, const DecodeSelect& a) {
  const auto groups = static_cast<unsigned>(a.qt.shape()[0]);
  const int64_t candidates = a.rule.candidates(a.position / a.block);
  const Select select{.blocks = a.selection.blocks.as<int32_t>().data(),
                      .scores = a.selection.scores.as<float>().data(),
                      .selected = a.selection.counts.as<int32_t>().data(),
                      .spans = a.spans.as<int32_t>().data(),
                      .log_gates = a.log_gates.as<float>().data(),
                      .counts = a.counts.as<int32_t>().data(),
                      .keys = reinterpret_cast<int32_t*>(a.scores.as<float>().data()),
                      .qt = a.qt.as<float>().data(),
                      .kt = a.kt.as<float>().data(),
                      .nodes = a.tree.enabled() ? a.nodes.as<float>().data() : nullptr,
                      .page_rows = a.page_rows.as<int32_t>().data(),
                      .widths = a.ramp.widths.as<float>().data(),
                      .tree = a.tree,
                      .position = a.position,
                      .pages = a.page_rows.elements(),
                      .strength = a.ramp.strength,
                      .scale = gate_scale(a.qt.shape()[1]),
                      .block = static_cast<int>(a.block),
                      .sink_blocks = static_cast<int>(a.rule.sink_blocks),
                      .window_blocks = static_cast<int>(a.rule.window_blocks),
                      .kept = static_cast<int>(a.rule.kept),
                      .most = static_cast<int>(a.spans.shape()[1]),
                      .candidates = static_cast<int>(candidates),
                      .gate_dim = static_cast<int>(a.qt.shape()[1]),
                      .gate_keys = static_cast<int>(a.gate_keys)};
  if (needs_tree(a.tree, candidates, a.rule.kept)) {
    const int64_t shared = TreeWalk::shared_bytes(select);
    CHECK(shared <= kMostShared, "decode_select: the tree has beam ", a.tree.beam, " and radix ",
          a.tree.radix, ", too much for the ", kMostShared, " bytes of shared memory");
    launch(stream, choose_in_tree, dim3(groups), kThreads, shared, select);
    return;
  }
  launch(stream, score_pages, dim3(blocks_for(candidates, kThreads), groups), kThreads, 0, select);
  const int64_t shared = shared_bytes_of<int32_t>(candidates);
  const bool in_shared = shared <= kMostShared;
  launch(stream, choose_pages, dim3(groups), kThreads, in_shared ? shared : 0, select, in_shared);
}

}  // namespace tessera::gpu
