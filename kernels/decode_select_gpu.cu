#include <algorithm>

#include "kernels/block_choice.cuh"
#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/decode_attention.h"
#include "kernels/gate_score.cuh"
#include "kernels/gate_tree.cuh"

// One token per group: what counts is how many steps wait for each other. A lane scores a page, so
// that a whole multiprocessor is not busy with one group; a block of lanes per group then chooses:
// each warp the best k + 1 of its eighth of the pages, one warp of theirs. The same block lists
// what the token attends to. Bytes: the gate keys, once.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kScoreThreads = 64;
constexpr int kGateThreads = 128;
constexpr int64_t kMostShared = 160 * 1024;

struct Select {
  int32_t* blocks;           // [groups, kept + 1]
  float* scores;             // [groups, kept + 1]
  int32_t* chosen;           // [groups]
  int32_t* spans;            // [groups, most, 2]
  float* log_gates;          // [groups, most]
  int32_t* counts;           // [groups]
  float* z;                  // [groups, pages]: of candidate i
  const float* qt;           // [groups, gate_dim]
  const float* kt;           // [groups, pages * gate_keys, gate_dim]
  const int32_t* page_rows;  // [pages]
  const float* widths;       // [groups]
  int64_t position;
  float strength;
  float scale;  // gate_scale
  int pages;
  int candidates;
  int own;  // page of the token
  int block;
  int gate_dim;
  int gate_keys;
  int sink_blocks;
  int window_blocks;
  int kept;
};

__global__ void __launch_bounds__(kScoreThreads) score_pages(Select a) {
  const int i = static_cast<int>(blockIdx.x * kScoreThreads + threadIdx.x);
  if (i >= a.candidates) return;
  const int64_t group = blockIdx.y;
  const int64_t key = (group * a.pages + a.sink_blocks + i) * a.gate_keys;
  a.z[group * a.pages + i] = gate_score(a.qt + group * a.gate_dim, a.kt + key * a.gate_dim,
                                        a.gate_dim, a.gate_keys, a.scale);
}

/// As log_gate of sparse_attention.h.
__device__ float log_gate_of(float z, float tau, float strength, float width) {
  const float u = (z - tau) / width;
  return u >= 1 ? 0.0f : logf((1 - strength) + strength * fmaxf(u, 0.0f));
}

/// What the token of this block's group attends to, from its row of the selection: forced pages,
/// chosen pages, and the window. A lane per page.
__device__ void list_pages(const Select& a) {
  const int64_t group = blockIdx.x;
  const int32_t* const blocks = a.blocks + group * (a.kept + 1);
  const float* const scores = a.scores + group * (a.kept + 1);
  const int chosen = a.chosen[group];
  const int sinks = std::min(a.sink_blocks, a.own + 1);
  const int window = std::max(sinks, a.own - a.window_blocks + 1);
  const int count = sinks + chosen + a.own + 1 - window;
  const int64_t most = int64_t{a.sink_blocks} + a.kept + a.window_blocks;
  const bool gated = blocks[a.kept] >= 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const int slot = i - sinks;
    const bool choice = slot >= 0 && slot < chosen;
    const int64_t page = slot < 0 ? i : choice ? blocks[slot] : window + slot - chosen;
    const int64_t rows = a.position + 1 - page * a.block;
    const int64_t at = group * most + i;
    a.spans[2 * at] = a.page_rows[page];
    a.spans[2 * at + 1] = static_cast<int32_t>(rows < a.block ? rows : a.block);
    a.log_gates[at] = choice && gated
                          ? log_gate_of(scores[slot], scores[a.kept], a.strength, a.widths[group])
                          : 0.0f;
  }
  if (threadIdx.x == 0) a.counts[group] = count;
}

/// Which candidates a warp looks at first, and where its best go.
struct Share {
  int first;
  int count;
  int place;
  int best;
};
__device__ Share share_of(const Select& a, int warp) {
  const int each = (a.candidates + kWarps - 1) / kWarps;
  Share share{0, 0, 0, 0};
  for (int w = 0; w <= warp; ++w) {
    share.place += share.best;
    share.first = std::min(a.candidates, w * each);
    share.count = std::min(a.candidates - share.first, each);
    share.best = std::min(share.count, a.kept + 1);
  }
  return share;
}

/// A block of lanes per group.
__global__ void __launch_bounds__(kThreads) choose_pages(Select a) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  SharedMemory shared;
  int32_t* const keys = shared.take<int32_t>(a.candidates);
  int32_t* const best_keys = shared.take<int32_t>(a.candidates);
  int32_t* const best = shared.take<int32_t>(a.candidates);
  const float* const z = a.z + int64_t{blockIdx.x} * a.pages;
  const Share share = share_of(a, warp);
  int32_t* const own = keys + share.first;
  for (int i = lane; i < share.count; i += kWarpSize) own[i] = score_key(z[share.first + i]);
  __syncwarp();
  if (share.count > 0) {
    for_each_best(
        own, share.count, find_bound(own, share.count, share.best),
        [&](int slot) { return share.first + slot; },
        [&](int candidate, int32_t key, int rank) {
          if (rank < 0) return;
          best_keys[share.place + rank] = key;
          best[share.place + rank] = candidate;
        });
  }
  __syncthreads();
  const int64_t row = int64_t{blockIdx.x} * (a.kept + 1);
  if (warp == 0) {
    const SelectionRow to{a.blocks + row, a.scores + row, a.kept};
    const auto block_of = [&](int slot) { return a.sink_blocks + best[slot]; };
    if (a.candidates <= a.kept) {
      write_all(to, best_keys, a.candidates, block_of);
    } else {
      const Share last = share_of(a, kWarps - 1);
      write_best(to, best_keys, last.place + last.best, block_of);
    }
    if (lane == 0) a.chosen[blockIdx.x] = std::min(a.candidates, a.kept);
  }
  __syncthreads();
  list_pages(a);
}

__global__ void __launch_bounds__(kThreads) list_chosen(Select a) {
  list_pages(a);
}

template <class T>
struct Gate {
  float* state;    // [groups, d + 2]
  T* kbar;         // [groups, d]
  const T* k0;     // [groups, d]
  const float* r;  // [groups, d]
  int d;
  bool first;     // token of its part
  bool complete;  // the part
};

/// Adds the token to the pool of one group.
template <class T>
__global__ void __launch_bounds__(kGateThreads) add_to_pool(Gate<T> a) {
  SharedMemory shared;
  float* const scratch = shared.take<float>(kWarpSize);
  const int64_t row = int64_t{blockIdx.x} * a.d;
  float* const state = a.state + int64_t{blockIdx.x} * (a.d + 2);
  const float highest = a.first ? 0.0f : state[0];
  const float total = a.first ? 0.0f : state[1];
  float product = 0;
  for (int i = static_cast<int>(threadIdx.x); i < a.d; i += kGateThreads) {
    product += to_float(a.k0[row + i]) * a.r[row + i];
  }
  const float e = block_sum(product, scratch);  // after which all have read the state
  const float largest = a.first ? e : fmaxf(highest, e);
  const float keep = a.first ? 0.0f : expf(highest - largest);
  const float weight = expf(e - largest);
  const float den = total * keep + weight;
  if (threadIdx.x == 0) {
    state[0] = largest;
    state[1] = den;
  }
  for (int i = static_cast<int>(threadIdx.x); i < a.d; i += kGateThreads) {
    const float before = a.first ? 0.0f : state[2 + i] * keep;
    const float num = before + weight * to_float(a.k0[row + i]);
    state[2 + i] = num;
    if (a.complete) a.kbar[row + i] = from_float<T>(num / den);
  }
}

Select select_of(const DecodeSelect& a) {
  const int64_t gate_dim = a.qt.shape()[1];
  const int64_t own = a.position / a.block;
  return {.blocks = a.selection.blocks.as<int32_t>().data(),
          .scores = a.selection.scores.as<float>().data(),
          .chosen = a.selection.counts.as<int32_t>().data(),
          .spans = a.spans.as<int32_t>().data(),
          .log_gates = a.log_gates.as<float>().data(),
          .counts = a.counts.as<int32_t>().data(),
          .z = a.scores.as<float>().data(),
          .qt = a.qt.as<float>().data(),
          .kt = a.kt.as<float>().data(),
          .page_rows = a.page_rows.as<int32_t>().data(),
          .widths = a.ramp.widths.as<float>().data(),
          .position = a.position,
          .strength = a.ramp.strength,
          .scale = gate_scale(gate_dim),
          .pages = static_cast<int>(a.page_rows.elements()),
          .candidates = static_cast<int>(a.rule.candidates(own)),
          .own = static_cast<int>(own),
          .block = static_cast<int>(a.block),
          .gate_dim = static_cast<int>(gate_dim),
          .gate_keys = static_cast<int>(a.gate_keys),
          .sink_blocks = static_cast<int>(a.rule.sink_blocks),
          .window_blocks = static_cast<int>(a.rule.window_blocks),
          .kept = static_cast<int>(a.rule.kept)};
}

}  // namespace

void decode_select(Stream& stream, const DecodeSelect& a) {
  const Select select = select_of(a);
  const auto groups = static_cast<unsigned>(a.qt.shape()[0]);
  if (needs_tree(a.tree, select.candidates, a.rule.kept)) {
    select_pages_in_tree(stream, a, select.candidates);
    launch(stream, list_chosen, dim3(groups), kThreads, 0, select);
    return;
  }
  const int64_t shared = 3 * shared_bytes_of<int32_t>(select.candidates);
  CHECK(shared <= kMostShared, "decode_select: ", select.candidates,
        " candidates are too many for the ", kMostShared,
        " bytes of shared memory; search them through a tree");
  launch(stream, score_pages, dim3(blocks_for(select.candidates, kScoreThreads), groups),
         kScoreThreads, 0, select);
  launch(stream, choose_pages, dim3(groups), kThreads, shared, select);
}

bool page_gate(Stream& stream, const PageGate& a) {
  const int64_t d = a.k0.shape()[1];
  const bool complete = (a.position + 1) % a.part == 0;
  with_float_type(a.k0.dtype(), [&]<class T>() {
    launch(stream, add_to_pool<T>, dim3(static_cast<unsigned>(a.k0.shape()[0])), kGateThreads,
           shared_bytes_of<float>(kWarpSize),
           Gate<T>{.state = a.state.as<float>().data(),
                   .kbar = a.kbar.as<T>().data(),
                   .k0 = a.k0.as<T>().data(),
                   .r = a.r.as<float>().data(),
                   .d = static_cast<int>(d),
                   .first = a.position % a.part == 0,
                   .complete = complete});
  });
  return complete;
}

}  // namespace tessera::gpu
