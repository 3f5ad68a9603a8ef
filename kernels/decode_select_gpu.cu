#include <algorithm>

#include "kernels/block_choice.cuh"
#include "kernels/core/device_check.cuh"
#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/decode_attention.h"
#include "kernels/gate_score.cuh"
#include "kernels/gate_tree.cuh"

// One token per group and sequence: what counts is how many steps wait for each other. A lane
// scores a page, so that a whole multiprocessor is not busy with one token; a block of lanes per
// token then chooses: each warp the best k + 1 of its eighth of the pages, one warp of theirs. The
// same block lists what the token attends to. Bytes: the gate keys, once. Grids are made for full
// caches, so that positions stay on the device; blocks beyond a sequence's pages have no work.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kScoreThreads = 64;
constexpr int kGateThreads = 128;
constexpr int64_t kMostShared = 160 * 1024;

struct Select {
  int32_t* blocks;           // [groups, sequences, kept + 1]
  float* scores;             // [groups, sequences, kept + 1]
  int32_t* chosen;           // [groups, sequences]
  int32_t* spans;            // [groups, sequences, most, 2]
  float* log_gates;          // [groups, sequences, most]
  int32_t* counts;           // [groups, sequences]
  float* z;                  // [groups, sequences, pages]: of candidate i
  const float* qt;           // [groups, sequences, gate_dim]
  const float* kt;           // [groups, sequences, pages * gate_keys, gate_dim]
  const int32_t* page_rows;  // [sequences, pages]
  const int32_t* positions;  // [sequences]
  const float* widths;       // [groups]
  TreeSearch tree;
  float strength;
  float scale;  // gate_scale
  int sequences;
  int pages;
  int most_candidates;  // of a token that needs no tree
  int block;
  int gate_dim;
  int gate_keys;
  int sink_blocks;
  int window_blocks;
  int kept;

  __host__ __device__ BlockRule rule() const { return {sink_blocks, window_blocks, kept}; }
};

/// The new token of a sequence, in a group.
struct Token {
  __device__ Token(const Select& a, int group, int of_sequence)
      : place(int64_t{group} * a.sequences + of_sequence),
        sequence(of_sequence),
        position(a.positions[of_sequence]),
        own(position / a.block),
        candidates(static_cast<int>(a.rule().candidates(own))),
        in_tree(needs_tree(a.tree, candidates, a.kept)) {
    device_check(position >= 0 && own < a.pages, "decode_select: a position is beyond the pages");
  }

  int64_t place;
  int sequence;
  int position;
  int own;  // page
  int candidates;
  bool in_tree;
};

__global__ void __launch_bounds__(kScoreThreads) score_pages(Select a) {
  const int i = static_cast<int>(blockIdx.x * kScoreThreads + threadIdx.x);
  const Token token(a, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z));
  if (i >= token.candidates || token.in_tree) return;
  const int64_t key = (token.place * a.pages + a.sink_blocks + i) * a.gate_keys;
  a.z[token.place * a.pages + i] = gate_score(
      a.qt + token.place * a.gate_dim, a.kt + key * a.gate_dim, a.gate_dim, a.gate_keys, a.scale);
}

/// As log_gate of sparse_attention.h.
__device__ float log_gate_of(float z, float tau, float strength, float width) {
  const float u = (z - tau) / width;
  return u >= 1 ? 0.0f : logf((1 - strength) + strength * fmaxf(u, 0.0f));
}

/// What a token attends to, from its row of the selection: forced pages, chosen pages, and the
/// window. A lane per page.
__device__ void list_pages(const Select& a, const Token& token, int group) {
  const int32_t* const blocks = a.blocks + token.place * (a.kept + 1);
  const float* const scores = a.scores + token.place * (a.kept + 1);
  const int32_t* const page_rows = a.page_rows + int64_t{token.sequence} * a.pages;
  const int chosen = a.chosen[token.place];
  const int sinks = std::min(a.sink_blocks, token.own + 1);
  const int window = std::max(sinks, token.own - a.window_blocks + 1);
  const int count = sinks + chosen + token.own + 1 - window;
  const int64_t most = int64_t{a.sink_blocks} + a.kept + a.window_blocks;
  const bool gated = blocks[a.kept] >= 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const int slot = i - sinks;
    const bool choice = slot >= 0 && slot < chosen;
    const int64_t page = slot < 0 ? i : choice ? blocks[slot] : window + slot - chosen;
    const int64_t rows = token.position + 1 - page * a.block;
    const int64_t at = token.place * most + i;
    a.spans[2 * at] = page_rows[page];
    a.spans[2 * at + 1] = static_cast<int32_t>(rows < a.block ? rows : a.block);
    a.log_gates[at] = choice && gated
                          ? log_gate_of(scores[slot], scores[a.kept], a.strength, a.widths[group])
                          : 0.0f;
  }
  if (threadIdx.x == 0) a.counts[token.place] = count;
}

/// Which candidates a warp looks at first, and where its best go.
struct Share {
  int first;
  int count;
  int place;
  int best;
};
__device__ Share share_of(int candidates, int kept, int warp) {
  const int each = (candidates + kWarps - 1) / kWarps;
  Share share{0, 0, 0, 0};
  for (int w = 0; w <= warp; ++w) {
    share.place += share.best;
    share.first = std::min(candidates, w * each);
    share.count = std::min(candidates - share.first, each);
    share.best = std::min(share.count, kept + 1);
  }
  return share;
}

/// The row of a token's selection from the scores of all its candidates.
__device__ void choose(const Select& a, const Token& token) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  SharedMemory shared;
  int32_t* const keys = shared.take<int32_t>(a.most_candidates);
  int32_t* const best_keys = shared.take<int32_t>(a.most_candidates);
  int32_t* const best = shared.take<int32_t>(a.most_candidates);
  const float* const z = a.z + token.place * a.pages;
  const Share share = share_of(token.candidates, a.kept, warp);
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
  if (warp != 0) return;
  const int64_t row = token.place * (a.kept + 1);
  const SelectionRow to{a.blocks + row, a.scores + row, a.kept};
  const auto block_of = [&](int slot) { return a.sink_blocks + best[slot]; };
  if (token.candidates <= a.kept) {
    write_all(to, best_keys, token.candidates, block_of);
  } else {
    const Share last = share_of(token.candidates, a.kept, kWarps - 1);
    write_best(to, best_keys, last.place + last.best, block_of);
  }
  if (lane == 0) a.chosen[token.place] = std::min(token.candidates, a.kept);
}

/// A block of lanes per group and sequence.
__global__ void __launch_bounds__(kThreads) choose_pages(Select a) {
  const auto group = static_cast<int>(blockIdx.x);
  const Token token(a, group, static_cast<int>(blockIdx.y));
  if (!token.in_tree) choose(a, token);
  __syncthreads();
  list_pages(a, token, group);
}

template <class T>
struct Gate {
  float* state;              // [groups, sequences, d + 2]
  T* kbar;                   // [groups, sequences, d]
  const T* k0;               // [groups, sequences, d]
  const float* r;            // [groups, d]
  const int32_t* positions;  // [sequences]
  int d;
  int part;
};

/// Adds the token of a sequence to the pool of a group: a block for each of both.
template <class T>
__global__ void __launch_bounds__(kGateThreads) add_to_pool(Gate<T> a) {
  SharedMemory shared;
  float* const scratch = shared.take<float>(kWarpSize);
  const int position = a.positions[blockIdx.y];
  const bool first = position % a.part == 0;
  const bool complete = (position + 1) % a.part == 0;
  const int64_t place = int64_t{blockIdx.x} * gridDim.y + blockIdx.y;
  const int64_t row = place * a.d;
  const float* const r = a.r + int64_t{blockIdx.x} * a.d;
  float* const state = a.state + place * (a.d + 2);
  const float highest = first ? 0.0f : state[0];
  const float total = first ? 0.0f : state[1];
  float product = 0;
  for (int i = static_cast<int>(threadIdx.x); i < a.d; i += kGateThreads) {
    product += to_float(a.k0[row + i]) * r[i];
  }
  const float e = block_sum(product, scratch);  // after which all have read the state
  const float largest = first ? e : fmaxf(highest, e);
  const float keep = first ? 0.0f : expf(highest - largest);
  const float weight = expf(e - largest);
  const float den = total * keep + weight;
  if (threadIdx.x == 0) {
    state[0] = largest;
    state[1] = den;
  }
  for (int i = static_cast<int>(threadIdx.x); i < a.d; i += kGateThreads) {
    const float before = first ? 0.0f : state[2 + i] * keep;
    const float num = before + weight * to_float(a.k0[row + i]);
    state[2 + i] = num;
    if (complete) a.kbar[row + i] = from_float<T>(num / den);
  }
}

Select select_of(const DecodeSelect& a) {
  const int64_t gate_dim = a.qt.shape()[2];
  const int64_t pages = a.page_rows.shape()[1];
  int64_t candidates = a.rule.candidates(pages - 1);
  if (a.tree.enabled()) {
    // The fewest that need a tree, less one: first_level.
    candidates = std::min(candidates, (a.tree.width(a.rule.kept) + 1) * a.tree.radix - 1);
  }
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
          .positions = a.positions.as<int32_t>().data(),
          .widths = a.ramp.widths.as<float>().data(),
          .tree = a.tree,
          .strength = a.ramp.strength,
          .scale = gate_scale(gate_dim),
          .sequences = static_cast<int>(a.qt.shape()[1]),
          .pages = static_cast<int>(pages),
          .most_candidates = static_cast<int>(candidates),
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
  const auto sequences = static_cast<unsigned>(a.qt.shape()[1]);
  const int64_t shared = 3 * shared_bytes_of<int32_t>(select.most_candidates);
  CHECK(shared <= kMostShared, "decode_select: ", select.most_candidates,
        " candidates are too many for the ", kMostShared,
        " bytes of shared memory; search them through a tree");
  launch(stream, score_pages,
         dim3(blocks_for(select.most_candidates, kScoreThreads), groups, sequences), kScoreThreads,
         0, select);
  if (needs_tree(a.tree, a.rule.candidates(select.pages - 1), a.rule.kept)) {
    select_pages_in_tree(stream, a);
  }
  launch(stream, choose_pages, dim3(groups, sequences), kThreads, shared, select);
}

void page_gate(Stream& stream, const PageGate& a) {
  const Shape& shape = a.k0.shape();
  with_float_type(a.k0.dtype(), [&]<class T>() {
    launch(stream, add_to_pool<T>,
           dim3(static_cast<unsigned>(shape[0]), static_cast<unsigned>(shape[1])), kGateThreads,
           shared_bytes_of<float>(kWarpSize),
           Gate<T>{.state = a.state.as<float>().data(),
                   .kbar = a.kbar.as<T>().data(),
                   .k0 = a.k0.as<T>().data(),
                   .r = a.r.as<float>().data(),
                   .positions = a.positions.as<int32_t>().data(),
                   .d = static_cast<int>(shape[2]),
                   .part = static_cast<int>(a.part)});
  });
}

}  // namespace tessera::gpu
