#pragma once

#include <algorithm>

#include "kernels/core/device.h"
#include "kernels/core/tensor_view.h"

namespace tessera {

/// Choosing blocks through a tree of gate keys, instead of scoring every candidate.
///
/// Leaf t of a segment's tree is block sink_blocks + t. Node t of level l covers the leaves
/// [t r^l, (t + 1) r^l); its key is the mean of its r children's, so its score is the mean of
/// theirs. A token with c candidates sees the c / r^l complete nodes of each level:
///   the level it begins at is the highest with more than m of them: it scores all of them;
///   of the scored nodes it keeps the m best (ties: the larger node), and goes on with their
///   children and with the complete nodes whose parent is not complete;
///   of the scored leaves it chooses as from all candidates.
/// With at most m r candidates that is the choice from all of them. A score of NaN, which a node
/// has if any leaf below it has, is below all others.
/// Source: dgsa definition 2.3.
struct TreeSearch {
  int64_t radix = 8;  ///< r: 4, 8 or 16
  int64_t beam = 0;   ///< nodes to keep per level; 0: no tree, every candidate is scored

  constexpr bool enabled() const { return beam > 0; }
  /// m: never so small that a token could miss a slot, or a level of a tree be needed that has no
  /// more than r nodes.
  constexpr int64_t width(int64_t kept) const { return std::max({beam, kept + 1, radix}); }
  /// The level at which a token begins; 0: with all candidates.
  constexpr int64_t first_level(int64_t candidates, int64_t kept) const {
    int64_t level = 0;
    for (int64_t nodes = candidates / radix; nodes > width(kept); nodes /= radix) ++level;
    return level;
  }
};

/// Where the nodes of one tree lie: levels with more than r nodes, the leaves first; on each level
/// families of r siblings (the last may be incomplete), [families, gate_dim, r]: a vector of r
/// floats holds one dimension of a family.
class TreeLayout {
 public:
  constexpr TreeLayout(int64_t leaves, int64_t radix) : leaves_(leaves), radix_(radix) {}
  constexpr int64_t radix() const { return radix_; }
  /// Nodes of a level in which every leaf is there.
  constexpr int64_t nodes(int64_t level) const {
    int64_t nodes = leaves_;
    for (int64_t l = 0; l < level; ++l) nodes /= radix_;
    return nodes;
  }
  /// In rows of gate_dim floats.
  constexpr int64_t first_row(int64_t level) const {
    int64_t row = 0;
    for (int64_t l = 0; l < level; ++l) row += (nodes(l) + radix_ - 1) / radix_ * radix_;
    return row;
  }
  /// Levels that are stored: 0 or more.
  constexpr int64_t levels() const {
    int64_t levels = 0;
    while (nodes(levels) > radix_) ++levels;
    return levels;
  }
  constexpr int64_t rows() const { return first_row(levels()); }

 private:
  int64_t leaves_;
  int64_t radix_;
};

/// Rows that the trees of segments with `blocks` blocks in all take at most: those of the segment
/// that begins at block b are from row tree_rows(b) on.
constexpr int64_t tree_rows(int64_t blocks) {
  return 3 * blocks;
}

/// Throws unless a search has a radix that there is. `who` begins the sentence.
void check_tree(const TreeSearch& tree, int64_t gate_keys, const char* who);

/// Decoding: adds the gate keys of complete pages to the trees of their sequences, those of all
/// groups, and the nodes that they complete. Pages of a sequence come in ascending order, in a call
/// and from call to call. A place or a page outside of kt throws on the CPU; a GPU stops.
struct InsertPages {
  TensorView nodes;         ///< in and out [groups, sequences, tree_rows(pages), gate_dim], f32
  ConstTensorView kt;       ///< [groups, sequences, pages, gate_dim], f32
  ConstTensorView places;   ///< [new pages], i32: the sequence of each
  ConstTensorView numbers;  ///< [new pages], i32: of the pages in their sequences; -1: none
  int64_t sink_blocks;
  TreeSearch tree;
};
void insert_pages(Stream& stream, const InsertPages& a);

namespace cpu {

void insert_pages(ThreadPool& threads, const InsertPages& a);

/// Adds leaf `leaf` to one tree; leaves come in ascending order. A parent is the sum of its
/// children in ascending order, times 1 / r.
void insert_leaf(const TreeLayout& layout, int64_t gate_dim, int64_t leaf, const float* key,
                 float* nodes);

struct SelectionRow;

/// The search of tokens that have the same candidates, of which first_level is above 0.
struct TreeQueries {
  static constexpr int64_t kMostTokens = 64;

  const float* nodes;  ///< of the segment's tree
  TreeLayout layout;
  TreeSearch tree;
  const float* qt;     ///< [tokens, gate_dim]
  SelectionRow* rows;  ///< [tokens], out: all slots
  int64_t tokens;      ///< 1 .. kMostTokens
  int64_t gate_dim;
  int64_t candidates;
  int64_t first_block;  ///< number of leaf 0
  int64_t kept;
};
void search_tree(const TreeQueries& a);

}  // namespace cpu
namespace gpu {
void insert_pages(Stream& stream, const InsertPages& a);
}  // namespace gpu

}  // namespace tessera
