#include "kernels/gate_tree.h"

#include <algorithm>

#include "kernels/block_choice.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/gate_score.h"
#include "kernels/gate_tree.cuh"

// A block of lanes has up to 32 tokens of one block of the grid, which begin at the same level.
// Below it the kept families differ from token to token: a bit per token in a word per node says
// who keeps it, and a warp reads each family once for all that do. A lane has one node of the
// family and up to four tokens. Sums have the order of gate_score.h, so scores and choices are
// those of the CPU to the last bit, and the order in which families are met does not matter.
// Work: about (beam + 1) radix gate_dim multiply-adds per token and level.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kMostTokens = 32;
constexpr int kWindow = 2048;  // nodes whose words are in shared memory at once
constexpr int kBuildThreads = 64;
constexpr int64_t kSharedForTwo = 100 * 1024;
constexpr int64_t kMostShared = 160 * 1024;

/// The trees of all groups and segments.
struct Trees {
  float* nodes;     // [groups, tree_rows(max_blocks), gate_dim]
  const float* kt;  // [groups, max_blocks, gate_dim]
  GridView grid;
  int64_t radix;
  int64_t sink_blocks;
  int gate_dim;

  __device__ TreeLayout layout(int segment) const {
    const int64_t blocks = grid.block_starts[segment + 1] - grid.block_starts[segment];
    return {blocks > sink_blocks ? blocks - sink_blocks : 0, radix};
  }
  __device__ float* tree(int64_t group, int segment) const {
    return nodes +
           (group * tree_rows(grid.max_blocks) + tree_rows(grid.block_starts[segment])) * gate_dim;
  }
};

/// All families of a level: a block of lanes per R^(level + 1) = `length` leaves of a segment.
template <int R>
__global__ void __launch_bounds__(kBuildThreads) build_level(Trees a, int level, int length) {
  const Stretches segments{a.grid.block_starts, nullptr, nullptr, a.grid.segments};
  const StretchPart part = find_part(segments, length, static_cast<int>(blockIdx.x));
  const TreeLayout layout = a.layout(part.stretch);
  const int64_t nodes = layout.nodes(level);
  const int64_t first = int64_t{part.first} / length * R;
  if (part.count == 0 || level >= layout.levels() || first >= nodes) return;
  const int64_t group = blockIdx.y;
  float* const tree = a.tree(group, part.stretch);
  float* const family = tree + (layout.first_row(level) + first) * a.gate_dim;
  const float* const leaves =
      a.kt +
      (group * a.grid.max_blocks + a.grid.block_starts[part.stretch] + a.sink_blocks) * a.gate_dim;
  const float* const below = tree + layout.first_row(level - 1) * a.gate_dim;
  for (int d = static_cast<int>(threadIdx.x); d < a.gate_dim; d += kBuildThreads) {
    for (int e = 0; e < R; ++e) {
      // What is not there is computed with and never used: it must only be a number.
      float x = 0;
      if (first + e < nodes && level == 0) {
        x = leaves[(first + e) * a.gate_dim + d];
      } else if (first + e < nodes) {
        const float* const children = below + (first + e) * R * a.gate_dim + int64_t{d} * R;
        for (int c = 0; c < R; ++c) x = __fadd_rn(x, children[c]);
        x = __fmul_rn(x, 1.0f / R);
      }
      family[int64_t{d} * R + e] = x;
    }
  }
}

/// Tokens that go down a tree, and where their choice goes.
struct Search {
  TreeSearch tree;
  int32_t* blocks;  // [groups, tokens, kept + 1]
  float* scores;    // [groups, tokens, kept + 1]
  int32_t* counts;  // [groups, tokens]
  const float* qt;  // [groups, tokens, gate_dim]
  float scale;      // gate_scale
  int gate_dim;
  int kept;
  int first_block;  // number of leaf 0
  int length;       // tokens of a block of lanes at most
  int width;        // nodes to keep
};

/// From one row of queries, or of keys, to the next in shared memory.
__host__ __device__ constexpr int query_stride(int gate_dim) {
  return (gate_dim + 3) / 4 / 2 * 8 + 4;
}
__host__ __device__ constexpr int key_stride(int width, int radix) {
  return (width + 1) * radix + 1;
}

/// What the block of lanes has in shared memory.
struct Scratch {
  float* queries;     // [length, query_stride]
  int32_t* keys;      // [length, key_stride]: of the scored nodes of a token
  int32_t* kept;      // [length, width]: its families, ascending
  int32_t* next;      // [length, width]: those of the level below
  uint32_t* keepers;  // [kWindow]: bit t: token t keeps the node
};

/// Where bit number n of a word is.
__device__ int place_of_bit(uint32_t word, int n) {
  int place = 0;
  for (int half = 16; half > 0; half /= 2) {
    const int before = __popc((word >> place) & ((1u << half) - 1));
    if (n >= before) {
      n -= before;
      place += half;
    }
  }
  return place;
}

/// Tokens meet a family, whose first `valid` nodes count: by a warp. Lanes of a node have tokens
/// number first + u, + 32 / R, ... of `tokens`. place_of(t): which of its families it is for t.
template <int R, int kEach, class PlaceOf>
__device__ void meet(const Search& a, const Scratch& s, const float* family, uint32_t tokens,
                     int first, int valid, PlaceOf place_of) {
  constexpr int kTeams = kWarpSize / R;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int e = lane % R;
  const int count = __popc(tokens);
  const int gate_dim = a.gate_dim;
  int token[kEach];
  const float* query[kEach];
  float sums[kEach] = {};
  for (int i = 0; i < kEach; ++i) {
    const int number = first + lane / R + i * kTeams;
    token[i] = place_of_bit(tokens, number < count ? number : 0);
    query[i] = s.queries + token[i] * query_stride(gate_dim);
  }
  int d = 0;
  for (; d + 4 <= gate_dim; d += 4) {
    float node[4];
    for (int c = 0; c < 4; ++c) node[c] = family[(d + c) * R + e];
    for (int i = 0; i < kEach; ++i) {
      const float4 q = *reinterpret_cast<const float4*>(query[i] + d);
      sums[i] = __fmaf_rn(node[0], q.x, sums[i]);
      sums[i] = __fmaf_rn(node[1], q.y, sums[i]);
      sums[i] = __fmaf_rn(node[2], q.z, sums[i]);
      sums[i] = __fmaf_rn(node[3], q.w, sums[i]);
    }
  }
  for (; d < gate_dim; ++d) {
    const float node = family[d * R + e];
    for (int i = 0; i < kEach; ++i) sums[i] = __fmaf_rn(node, query[i][d], sums[i]);
  }
  for (int i = 0; i < kEach; ++i) {
    if (first + lane / R + i * kTeams >= count || e >= valid) continue;
    const int t = token[i];
    s.keys[t * key_stride(a.width, R) + place_of(t) * R + e] =
        score_key(__fmaf_rn(sums[i], a.scale, 0.0f));
  }
}

/// The same for any number of tokens.
template <int R, class PlaceOf>
__device__ void meet_all(const Search& a, const Scratch& s, const float* family, uint32_t tokens,
                         int valid, PlaceOf place_of) {
  constexpr int kTeams = kWarpSize / R;
  const int count = __popc(tokens);
  for (int first = 0; first < count;) {
    const int left = count - first;
    if (left <= kTeams) {
      meet<R, 1>(a, s, family, tokens, first, valid, place_of);
      first += kTeams;
    } else if (left <= 2 * kTeams) {
      meet<R, 2>(a, s, family, tokens, first, valid, place_of);
      first += 2 * kTeams;
    } else {
      meet<R, 4>(a, s, family, tokens, first, valid, place_of);
      first += 4 * kTeams;
    }
  }
}

/// The way down of the tokens of a block of lanes.
template <int R>
class Walk {
 public:
  __device__ Walk(const Search& a, const Scratch& s, const float* nodes, const TreeLayout& layout,
                  int tokens, int candidates)
      : a_(a),
        s_(s),
        layout_(layout),
        nodes_(nodes),
        size_(R * a.gate_dim),
        everyone_(~uint32_t{0} >> (kMostTokens - tokens)),
        tokens_(tokens),
        candidates_(candidates) {}

  /// Returns how many leaves each token scored: their keys are in s.keys, and leaf_of names them.
  __device__ int run() {
    auto level = static_cast<int>(a_.tree.first_level(candidates_, a_.kept));
    score_all(level);
    int slots = complete(level);
    parents_ = -1;
    for (;;) {
      __syncthreads();
      keep(slots);
      __syncthreads();
      swap();
      parents_ = complete(level--);
      slots = score_children(level);
      if (level == 0) return slots;
    }
  }
  /// Node of a slot: child of a kept family, or of the family without a complete parent.
  __device__ int node_of(int t, int slot) const {
    if (parents_ < 0) return slot;
    const int place = slot / R;
    return (place < a_.width ? s_.kept[t * a_.width + place] : parents_) * R + slot % R;
  }

 private:
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }
  /// Nodes of a level that are complete for these tokens.
  __device__ int complete(int level) const {
    int nodes = candidates_;
    for (int l = 0; l < level; ++l) nodes /= R;
    return nodes;
  }
  /// The families of a level, each of R gate_dim floats.
  __device__ const float* families(int level) const {
    return nodes_ + layout_.first_row(level) * a_.gate_dim;
  }
  __device__ void swap() {
    int32_t* const kept = s_.kept;
    s_.kept = s_.next;
    s_.next = kept;
  }

  __device__ void score_all(int level) {
    const int nodes = complete(level);
    const float* const all = families(level);
    for (int number = warp(); number * R < nodes; number += kWarps) {
      const int valid = nodes - number * R < R ? nodes - number * R : R;
      meet_all<R>(a_, s_, all + int64_t{number} * size_, everyone_, valid,
                  [&](int) { return number; });
    }
  }

  /// The `width` best of a token's slots become its families of the level below: in s.next.
  __device__ void keep(int slots) const {
    for (int t = warp(); t < tokens_; t += kWarps) {
      const int32_t* const keys = s_.keys + t * key_stride(a_.width, R);
      int32_t* const to = s_.next + t * a_.width;
      for_each_best(
          keys, slots, find_bound(keys, slots, a_.width),
          [&](int slot) { return node_of(t, slot); },
          [&](int node, int32_t, int rank) {
            if (rank >= 0) to[rank] = node;
          });
    }
  }

  /// Scores the children of the kept families, and the nodes of `level` whose parent is not
  /// complete. Returns how many slots that makes.
  __device__ int score_children(int level) {
    const float* const all = families(level);
    for (int first = 0; first < parents_; first += kWindow) {
      const int count = parents_ - first < kWindow ? parents_ - first : kWindow;
      mark_keepers(first, count);
      for (int i = warp(); i < count; i += kWarps) {
        if (s_.keepers[i] == 0) continue;
        const int number = first + i;
        meet_all<R>(a_, s_, all + int64_t{number} * size_, s_.keepers[i], R,
                    [&](int t) { return place_of(t, number); });
      }
      __syncthreads();  // keepers is used again
    }
    const int orphans = complete(level) - parents_ * R;
    if (orphans > 0 && warp() == 0) {
      meet_all<R>(a_, s_, all + int64_t{parents_} * size_, everyone_, orphans,
                  [&](int) { return a_.width; });
    }
    return a_.width * R + orphans;
  }

  /// Which tokens keep the nodes [first, first + count) of the level above.
  __device__ void mark_keepers(int first, int count) const {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) s_.keepers[i] = 0;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tokens_ * a_.width; i += kThreads) {
      const int node = s_.kept[i] - first;
      if (node >= 0 && node < count) atomicOr(s_.keepers + node, 1u << (i / a_.width));
    }
    __syncthreads();
  }
  /// Which of a token's families a node is.
  __device__ int place_of(int t, int node) const {
    return range_of(s_.kept + t * a_.width, a_.width, node);
  }

  const Search& a_;
  Scratch s_;
  TreeLayout layout_;
  const float* nodes_;
  int size_;  // of a family
  uint32_t everyone_;
  int tokens_;
  int candidates_;
  int parents_ = -1;  // complete nodes of the level above; -1: all nodes are scored
};

/// Rows of up to `length` tokens from `first_token` of qt and the selection on, by a block of
/// lanes.
template <int R>
__device__ void search_tokens(const Search& a, const float* nodes, const TreeLayout& layout,
                              int64_t first_token, int tokens, int candidates) {
  const int stride = query_stride(a.gate_dim);
  SharedMemory shared;
  Scratch s;
  s.queries = shared.take<float>(a.length * stride);
  s.keys = shared.take<int32_t>(a.length * key_stride(a.width, R));
  s.kept = shared.take<int32_t>(a.length * a.width);
  s.next = shared.take<int32_t>(a.length * a.width);
  s.keepers = shared.take<uint32_t>(kWindow);
  for (int i = static_cast<int>(threadIdx.x); i < tokens * a.gate_dim; i += kThreads) {
    s.queries[i / a.gate_dim * stride + i % a.gate_dim] = a.qt[first_token * a.gate_dim + i];
  }
  __syncthreads();
  Walk<R> walk(a, s, nodes, layout, tokens, candidates);
  const int slots = walk.run();
  __syncthreads();
  for (int t = static_cast<int>(threadIdx.x) / kWarpSize; t < tokens; t += kWarps) {
    const int64_t row = (first_token + t) * (a.kept + 1);
    write_best(SelectionRow{a.blocks + row, a.scores + row, a.kept},
               s.keys + t * key_stride(a.width, R), slots,
               [&](int slot) { return a.first_block + walk.node_of(t, slot); });
    if (threadIdx.x % kWarpSize == 0) a.counts[first_token + t] = a.kept;
  }
}

/// Training: a block of lanes per part of pieces, and group.
template <int R>
__global__ void __launch_bounds__(kThreads, 2) search_trees(Search a, Trees trees, BlockRule rule) {
  const GridView& grid = trees.grid;
  const StretchPart part =
      find_part(grid.pieces, a.length, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  if (part.count == 0) return;
  const auto candidates = static_cast<int>(rule.candidates(part.first / grid.block));
  if (!needs_tree(a.tree, candidates, a.kept)) return;
  const int segment = grid.pieces.segment(part.stretch);
  search_tokens<R>(
      a, trees.tree(blockIdx.y, segment), trees.layout(segment),
      int64_t{blockIdx.y} * grid.tokens + grid.pieces.origin(part.stretch) + part.first, part.count,
      candidates);
}

/// The tokens that are decoded, one of each sequence.
struct Pages {
  const float* nodes;        // [groups, sequences, tree rows, gate_dim]
  const int32_t* positions;  // [sequences]
  int64_t stride;            // floats of a sequence's nodes
  TreeLayout layout;
  BlockRule rule;
  int64_t block;
};

/// Decoding: a block of lanes per group and sequence.
template <int R>
__global__ void __launch_bounds__(kThreads) search_pages(Search a, Pages pages) {
  const int64_t place = int64_t{blockIdx.x} * gridDim.y + blockIdx.y;
  const auto candidates =
      static_cast<int>(pages.rule.candidates(pages.positions[blockIdx.y] / pages.block));
  if (!needs_tree(a.tree, candidates, a.kept)) return;
  search_tokens<R>(a, pages.nodes + place * pages.stride, pages.layout, place, 1, candidates);
}

template <int R>
void build_trees(Stream& stream, const Trees& trees, int64_t groups) {
  const Stretches segments{trees.grid.block_starts, nullptr, nullptr, trees.grid.segments};
  int64_t length = R;
  for (int level = 0; trees.grid.max_blocks * int64_t{R} / length > R; ++level, length *= R) {
    const int64_t parts = part_bound(segments, trees.grid.max_blocks, length);
    launch(stream, build_level<R>,
           dim3(static_cast<unsigned>(parts), static_cast<unsigned>(groups)), kBuildThreads, 0,
           trees, level, static_cast<int>(length));
  }
}

int64_t shared_bytes(const Search& a, int radix) {
  return shared_bytes_of<float>(int64_t{a.length} * query_stride(a.gate_dim)) +
         shared_bytes_of<int32_t>(int64_t{a.length} * key_stride(a.width, radix)) +
         2 * shared_bytes_of<int32_t>(int64_t{a.length} * a.width) +
         shared_bytes_of<uint32_t>(kWindow);
}

/// As many tokens per block of lanes as leave room for two of them, or for one: at most `most`.
void choose_length(Search& a, int radix, int64_t most, int64_t block) {
  for (a.length = static_cast<int>(most); a.length > 1; a.length /= 2) {
    const int64_t room = a.length > kMostTokens / 4 ? kSharedForTwo : kMostShared;
    if (block % a.length == 0 && shared_bytes(a, radix) <= room) break;
  }
  CHECK(shared_bytes(a, radix) <= kMostShared, "tree search: the tree has beam ", a.tree.beam,
        " and radix ", radix, ", too much for the ", kMostShared, " bytes of shared memory");
}

template <int R>
void search(Stream& stream, Search a, const Trees& trees, const BlockRule& rule, int64_t groups) {
  build_trees<R>(stream, trees, groups);
  choose_length(a, R, kMostTokens, trees.grid.block);
  const int64_t parts = part_bound(trees.grid.pieces, trees.grid.tokens, a.length);
  launch(stream, search_trees<R>, dim3(static_cast<unsigned>(parts), static_cast<unsigned>(groups)),
         kThreads, shared_bytes(a, R), a, trees, rule);
}

/// What both uses of a selection have alike.
Search search_of(const BlockSelection& selection, const ConstTensorView& qt, const TreeSearch& tree,
                 const BlockRule& rule) {
  const int64_t gate_dim = qt.shape()[-1];
  return {.tree = tree,
          .blocks = selection.blocks.as<int32_t>().data(),
          .scores = selection.scores.as<float>().data(),
          .counts = selection.counts.as<int32_t>().data(),
          .qt = qt.as<float>().data(),
          .scale = gate_scale(gate_dim),
          .gate_dim = static_cast<int>(gate_dim),
          .kept = static_cast<int>(rule.kept),
          .first_block = static_cast<int>(rule.sink_blocks),
          .length = 1,
          .width = static_cast<int>(tree.width(rule.kept))};
}

}  // namespace

void select_in_trees(Stream& stream, const ScoreSelect& a, const GridView& grid) {
  // No token of these shapes has a level that has more nodes than the beam.
  if (!needs_tree(a.tree, grid.max_blocks, a.rule.kept)) return;
  const int64_t groups = a.qt.shape()[0];
  const Search tokens = search_of(a.selection, a.qt, a.tree, a.rule);
  const Trees trees{.nodes = a.nodes.as<float>().data(),
                    .kt = a.kt.as<float>().data(),
                    .grid = grid,
                    .radix = a.tree.radix,
                    .sink_blocks = a.rule.sink_blocks,
                    .gate_dim = tokens.gate_dim};
  if (a.tree.radix == 4) return search<4>(stream, tokens, trees, a.rule, groups);
  if (a.tree.radix == 8) return search<8>(stream, tokens, trees, a.rule, groups);
  return search<16>(stream, tokens, trees, a.rule, groups);
}

void select_pages_in_tree(Stream& stream, const DecodeSelect& a) {
  const int64_t pages = a.page_rows.shape()[1];
  Search token = search_of(a.selection, a.qt, a.tree, a.rule);
  const auto radix = static_cast<int>(a.tree.radix);
  choose_length(token, radix, 1, 1);
  launch(stream,
         radix == 4   ? search_pages<4>
         : radix == 8 ? search_pages<8>
                      : search_pages<16>,
         dim3(static_cast<unsigned>(a.qt.shape()[0]), static_cast<unsigned>(a.qt.shape()[1])),
         kThreads, shared_bytes(token, radix), token,
         Pages{.nodes = a.nodes.as<float>().data(),
               .positions = a.positions.as<int32_t>().data(),
               .stride = tree_rows(pages) * token.gate_dim,
               .layout = TreeLayout(pages - a.rule.sink_blocks, a.tree.radix),
               .rule = a.rule,
               .block = a.block});
}

}  // namespace tessera::gpu
