// The tokens of a search share their candidates, so on every level each keeps as many nodes as the
// others. The first level is a small matrix product, as in score_select. Below it the kept families
// differ from token to token: all tokens that keep a family are found in one pass over the nodes,
// and the family is read once for all of them. A family is scored with one fused multiply-add per
// dimension and token, whose lanes are its nodes.

#include <array>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/core/simd.h"
#include "kernels/gate_score_lanes.h"
#include "kernels/gate_tree.h"
#include "kernels/tile_choice.h"

#if defined(__FMA__)
#include <immintrin.h>
#endif

namespace tessera::cpu {

namespace {

/// R floats, the nodes of a family.
template <int R>
struct Lanes;
template <>
struct Lanes<4> {
  using Floats [[gnu::vector_size(16)]] = float;
  using Ints [[gnu::vector_size(16)]] = int32_t;
};
template <>
struct Lanes<8> {
  using Floats [[gnu::vector_size(32)]] = float;
  using Ints [[gnu::vector_size(32)]] = int32_t;
};
template <>
struct Lanes<16> {
  using Floats = F32x16;
  using Ints = I32x16;
};

/// a * b + c, rounded once.
template <int R>
[[gnu::always_inline]] inline typename Lanes<R>::Floats fused_row(typename Lanes<R>::Floats a,
                                                                  float b,
                                                                  typename Lanes<R>::Floats c) {
  using Floats = typename Lanes<R>::Floats;
  const Floats factor = b - Floats{};
#if defined(__FMA__)
  if constexpr (R == 4) {
    return std::bit_cast<Floats>(_mm_fmadd_ps(
        std::bit_cast<__m128>(a), std::bit_cast<__m128>(factor), std::bit_cast<__m128>(c)));
  } else if constexpr (R == 8) {
    return std::bit_cast<Floats>(_mm256_fmadd_ps(
        std::bit_cast<__m256>(a), std::bit_cast<__m256>(factor), std::bit_cast<__m256>(c)));
  } else {
    return fused(a, factor, c);
  }
#else
  Floats sum;
  for (int lane = 0; lane < R; ++lane) sum[lane] = std::fma(a[lane], factor[lane], c[lane]);
  return sum;
#endif
}

/// A token meets a family: its R keys go to `keys`.
struct Meeting {
  const float* family;  // [gate_dim, R]
  const float* query;   // [gate_dim]
  int32_t* keys;
};

/// N meetings at once, so that their sums do not wait for each other. Every S in turn are of one
/// family, which is then loaded once.
template <int R, int N, int S>
void meet(const Meeting* meetings, int64_t gate_dim) {
  using Floats = typename Lanes<R>::Floats;
  using Ints = typename Lanes<R>::Ints;
  Floats sums[N] = {};
  const float* families[N];
  const float* queries[N];
  for (int n = 0; n < N; ++n) {
    families[n] = meetings[n / S * S].family;
    queries[n] = meetings[n].query;
  }
  for (int64_t d = 0; d < gate_dim; ++d) {
    for (int n = 0; n < N; ++n) {
      Floats row;
      std::memcpy(&row, families[n / S * S] + d * R, sizeof(row));
      sums[n] = fused_row<R>(row, queries[n][d], sums[n]);
    }
  }
  const float scale = gate_scale(gate_dim);
  for (int n = 0; n < N; ++n) {
    const Floats score = fused_row<R>(sums[n], scale, Floats{});
    const Ints bits = score == score ? std::bit_cast<Ints>(score) : Ints{} - 1;
    const Ints keys = bits ^ ((bits >> 31) & 0x7FFFFFFF);
    std::memcpy(meetings[n].keys, &keys, sizeof(keys));
  }
}

/// Swaps the off-diagonal quarters of every square of 2 S rows and lanes.
template <int S, int... J>
void swap_quarters(I32x16* rows, std::integer_sequence<int, J...>) {
  for (int i = 0; i < kLanes; ++i) {
    if ((i & S) != 0) continue;
    const I32x16 low = rows[i];
    const I32x16 high = rows[i + S];
    rows[i] = __builtin_shufflevector(low, high, ((J & S) != 0 ? 16 + J - S : J)...);
    rows[i + S] = __builtin_shufflevector(low, high, ((J & S) != 0 ? 16 + J : J + S)...);
  }
}

/// to[j][t] = rows[t * stride + j], 16 x 16.
template <class T, class Vector>
void transpose(const T* rows, int64_t stride, Vector* to) {
  I32x16 square[kLanes];
  for (int64_t t = 0; t < kLanes; ++t) std::memcpy(&square[t], rows + t * stride, sizeof(I32x16));
  constexpr auto lanes = std::make_integer_sequence<int, 16>();
  swap_quarters<8>(square, lanes);
  swap_quarters<4>(square, lanes);
  swap_quarters<2>(square, lanes);
  swap_quarters<1>(square, lanes);
  std::memcpy(to, square, sizeof(square));
}

/// Buffers of one thread; they only grow.
struct Scratch {
  std::vector<F32x16> queries;    // [gate_dim]: of 16 tokens, transposed
  std::vector<I32x16> keys;       // [slots]: of 16 tokens
  std::vector<int32_t> rows;      // [tokens, stride]: the same, token by token
  std::vector<int32_t> kept;      // [tokens, width]: nodes, ascending
  std::vector<int32_t> next;      // the same of the level below
  std::vector<uint64_t> keepers;  // [nodes]: bit t: token t keeps the node
};

template <class T>
T* grown(std::vector<T>& buffer, int64_t size) {
  if (std::ssize(buffer) < size) buffer.resize(static_cast<size_t>(size));
  return buffer.data();
}

template <int R>
class Walk {
 public:
  Walk(const TreeQueries& a, Scratch& scratch)
      : a_(a), scratch_(scratch), width_(a.tree.width(a.kept)) {}

  void run() {
    int64_t level = a_.tree.first_level(a_.candidates, a_.kept);
    clear_keepers(level);
    for (int64_t first = 0; first < a_.tokens; first += kLanes) score_all(level, first);
    while (--level >= 0) {
      score_children(level);
      if (level > 0) clear_keepers(level);
      for (int64_t first = 0; first < a_.tokens; first += kLanes) {
        gather_slots(first);
        if (level > 0) {
          keep_slots(first);
        } else {
          choose_slots(first);
        }
      }
    }
  }

 private:
  static constexpr size_t kAtOnce = 8;

  /// Nodes of a level that are complete for these tokens.
  int64_t complete(int64_t level) const {
    int64_t nodes = a_.candidates;
    for (int64_t l = 0; l < level; ++l) nodes /= R;
    return nodes;
  }
  const float* family(int64_t level, int64_t number) const {
    return a_.nodes + (a_.layout.first_row(level) + number * R) * a_.gate_dim;
  }
  int64_t tile(int64_t first) const { return std::min(kLanes, a_.tokens - first); }
  std::span<const I32x16> keys(int64_t count) const {
    return {scratch_.keys.data(), static_cast<size_t>(count)};
  }
  /// One more for the nodes without a complete parent.
  void clear_keepers(int64_t level) {
    scratch_.keepers.assign(static_cast<size_t>(complete(level) + 1), 0);
  }

  /// Keeps the best of all nodes of a level, for the tokens from `first` on.
  void score_all(int64_t level, int64_t first) {
    const int64_t nodes = complete(level);
    gather_queries(first);
    I32x16* keys_of_nodes = grown(scratch_.keys, nodes + R);
    for (int64_t node = 0; node < nodes; node += R) {
      score_family(family(level, node / R), keys_of_nodes + node);
    }
    for_best_slots(keys(nodes), static_cast<int32_t>(width_), tile(first),
                   [&](uint32_t tokens, int64_t node) {
                     scratch_.keepers[static_cast<size_t>(node)] |= uint64_t{tokens} << first;
                   });
  }

  void gather_queries(int64_t first) {
    const int64_t tokens = tile(first);
    const float* qt = a_.qt + first * a_.gate_dim;
    F32x16* queries = grown(scratch_.queries, a_.gate_dim);
    int64_t d = 0;
    for (; tokens == kLanes && d + kLanes <= a_.gate_dim; d += kLanes) {
      transpose(qt + d, a_.gate_dim, queries + d);
    }
    for (; d < a_.gate_dim; ++d) {
      queries[d] = F32x16{};
      for (int64_t t = 0; t < tokens; ++t) queries[d][t] = qt[t * a_.gate_dim + d];
    }
  }

  void score_family(const float* family, I32x16* keys_of_nodes) const {
    const F32x16* queries = scratch_.queries.data();
    F32x16 sums[R] = {};
    for (int64_t d = 0; d < a_.gate_dim; ++d) {
      for (int e = 0; e < R; ++e) {
        sums[e] = fused(broadcast(family[d * R + e]), queries[d], sums[e]);
      }
    }
    const float scale = gate_scale(a_.gate_dim);
    for (int e = 0; e < R; ++e) {
      keys_of_nodes[e] = keys_of(fused(broadcast(scale), sums[e], F32x16{}));
    }
  }

  /// Fills scratch.rows and scratch.kept: of every token the children of the nodes that it kept,
  /// and the nodes of `level` whose parent is not complete, which are a family too.
  void score_children(int64_t level) {
    const int64_t parents = complete(level + 1);
    slots_ = width_ * R + complete(level) - parents * R;
    stride_ = (width_ + 1) * R + kLanes;
    grown(scratch_.rows, (a_.tokens + kLanes) * stride_);
    grown(scratch_.kept, a_.tokens * (width_ + 1));
    met_.fill(0);
    if (slots_ > width_ * R) scratch_.keepers.back() = ~uint64_t{0} >> (64 - a_.tokens);
    for (int64_t node = 0; node <= parents; ++node) {
      const uint64_t keepers = scratch_.keepers[static_cast<size_t>(node)];
      if (keepers != 0) meet_family(family(level, node), node, keepers);
    }
    for (Waiting& few : waiting_) {
      for (; few.count > 0; --few.count) meet<R, 1, 1>(&few.meetings[few.count - 1], a_.gate_dim);
    }
  }

  void meet_family(const float* family, int64_t number, uint64_t keepers) {
    std::array<Meeting, kAtOnce> shared;
    size_t count = 0;
    for (; keepers != 0; keepers &= keepers - 1) {
      const int t = std::countr_zero(keepers);
      const int64_t place = met_[static_cast<size_t>(t)]++;
      scratch_.kept[static_cast<size_t>(t * (width_ + 1) + place)] = static_cast<int32_t>(number);
      shared[count++] = {family, a_.qt + t * a_.gate_dim,
                         scratch_.rows.data() + t * stride_ + place * R};
      if (count < kAtOnce) continue;
      meet<R, kAtOnce, kAtOnce>(shared.data(), a_.gate_dim);
      count = 0;
    }
    if ((count & 4) != 0) wait<4>(waiting_[2], shared.data() + count % 4);
    if ((count & 2) != 0) wait<2>(waiting_[1], shared.data() + count % 2);
    if ((count & 1) != 0) wait<1>(waiting_[0], shared.data());
  }

  /// Meetings of tokens with one family, too few to make them at once.
  struct Waiting {
    std::array<Meeting, kAtOnce> meetings;
    size_t count = 0;
  };
  template <size_t S>
  void wait(Waiting& few, const Meeting* shared) {
    // With a family each, 8 meetings have more addresses than there are registers.
    constexpr size_t kEnough = S == 1 ? kAtOnce / 2 : kAtOnce;
    std::copy_n(shared, S, few.meetings.begin() + few.count);
    few.count += S;
    if (few.count < kEnough) return;
    meet<R, kEnough, S>(few.meetings.data(), a_.gate_dim);
    few.count = 0;
  }

  void gather_slots(int64_t first) {
    I32x16* keys_of_slots = grown(scratch_.keys, slots_ + kLanes);
    for (int64_t slot = 0; slot < slots_; slot += kLanes) {
      transpose(scratch_.rows.data() + first * stride_ + slot, stride_, keys_of_slots + slot);
    }
  }
  int64_t node_of(int64_t token, int64_t slot) const {
    return int64_t{scratch_.kept[static_cast<size_t>(token * (width_ + 1) + slot / R)]} * R +
           slot % R;
  }

  void keep_slots(int64_t first) {
    for_each_best(keys(slots_), static_cast<int32_t>(width_), tile(first),
                  [&](int64_t t, int64_t slot, int32_t) {
                    const auto node = static_cast<size_t>(node_of(first + t, slot));
                    scratch_.keepers[node] |= uint64_t{1} << (first + t);
                  });
  }

  void choose_slots(int64_t first) {
    SelectionRow* rows = a_.rows + first;
    for_each_best(keys(slots_), static_cast<int32_t>(a_.kept + 1), tile(first),
                  [&](int64_t t, int64_t slot, int32_t key) {
                    rows[t].add(a_.first_block + node_of(first + t, slot), key);
                  });
    for (int64_t t = 0; t < tile(first); ++t) rows[t].move_runner_up_to_the_end();
  }

  const TreeQueries& a_;
  Scratch& scratch_;
  int64_t width_;
  int64_t slots_ = 0;                                    // scored nodes of a token
  int64_t stride_ = 0;                                   // of scratch.rows
  std::array<int64_t, TreeQueries::kMostTokens> met_{};  // families of each token so far
  std::array<Waiting, 3> waiting_;                       // ones, twos and fours of a family
};

}  // namespace

void search_tree(const TreeQueries& a) {
  thread_local Scratch scratch;
  if (a.tree.radix == 4) return Walk<4>(a, scratch).run();
  if (a.tree.radix == 8) return Walk<8>(a, scratch).run();
  return Walk<16>(a, scratch).run();
}

void insert_leaf(const TreeLayout& layout, int64_t gate_dim, int64_t leaf, const float* key,
                 float* nodes) {
  const int64_t r = layout.radix();
  const int64_t levels = layout.levels();
  const float share = 1 / static_cast<float>(r);
  int64_t node = leaf;
  for (int64_t level = 0; level < levels; ++level, node /= r) {
    float* family = nodes + (layout.first_row(level) + node / r * r) * gate_dim;
    // What is not there yet is computed and never used: it must only be a number.
    if (node % r == 0) std::fill(family, family + r * gate_dim, 0.0f);
    for (int64_t d = 0; d < gate_dim; ++d) {
      float x = key == nullptr ? 0 : key[d];
      if (key == nullptr) {
        const float* children = nodes + (layout.first_row(level - 1) + node * r) * gate_dim + d * r;
        for (int64_t e = 0; e < r; ++e) x += children[e];
        x *= share;
      }
      family[d * r + node % r] = x;
    }
    if (node % r != r - 1) return;
    key = nullptr;
  }
}

void insert_pages(ThreadPool&, const InsertPages& a) {
  const Shape& shape = a.kt.shape();
  const int64_t sequences = shape[1];
  const int64_t pages = shape[2];
  const int64_t gate_dim = shape[3];
  const TreeLayout layout(pages - a.sink_blocks, a.tree.radix);
  for (int64_t i = 0; i < a.numbers.elements(); ++i) {
    const int64_t sequence = a.places.as<int32_t>()[static_cast<size_t>(i)];
    const int64_t page = a.numbers.as<int32_t>()[static_cast<size_t>(i)];
    CHECK(sequence >= 0 && sequence < sequences, "insert_pages: place is ", sequence,
          ", expected 0 to ", sequences - 1);
    CHECK(page >= -1 && page < pages, "insert_pages: page is ", page, ", expected -1 to ",
          pages - 1);
    for (int64_t c = 0; page >= a.sink_blocks && c < shape[0]; ++c) {
      const int64_t place = c * sequences + sequence;
      insert_leaf(layout, gate_dim, page - a.sink_blocks,
                  a.kt.as<float>().data() + (place * pages + page) * gate_dim,
                  a.nodes.as<float>().data() + place * tree_rows(pages) * gate_dim);
    }
  }
}

}  // namespace tessera::cpu
