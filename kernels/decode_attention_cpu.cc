#include "kernels/decode_attention.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/core/fast_math.h"
#include "kernels/gate_score.h"
#include "kernels/tile_choice.h"

namespace tessera::cpu {

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

template <class A, class B>
float dot(const A* a, const B* b, int64_t d) {
  F32x16 products{};
  for (int64_t i = 0; i < d; i += kLanes) {
    products += load_first(a + i, d - i) * load_first(b + i, d - i);
  }
  return sum(products);
}

/// Adds the token to the pool of one group. `state`: max, den, num [d].
template <class T>
void add_to_pool(float* state, const T* k0, const float* r, int64_t d, bool first) {
  const float e = dot(k0, r, d);
  const float largest = first ? e : std::max(state[0], e);
  const float keep = first ? 0 : fast_exp(state[0] - largest);
  const float weight = fast_exp(e - largest);
  state[0] = largest;
  state[1] = (first ? 0 : state[1] * keep) + weight;
  for (int64_t i = 0; i < d; ++i) {
    state[2 + i] = (first ? 0 : state[2 + i] * keep) + weight * to_float(k0[i]);
  }
}

}  // namespace

void page_gate(ThreadPool&, const PageGate& a) {
  const int64_t places = a.k0.shape()[0] * a.k0.shape()[1];
  const int64_t sequences = a.k0.shape()[1];
  const int64_t d = a.k0.shape()[2];
  with_float_type(a.k0.dtype(), [&]<class T>() {
    for (int64_t place = 0; place < places; ++place) {
      const int64_t position = a.positions.as<int32_t>()[static_cast<size_t>(place % sequences)];
      float* state = a.state.as<float>().data() + place * (d + 2);
      const float* r = a.r.as<float>().data() + place / sequences * d;
      add_to_pool(state, a.k0.as<T>().data() + place * d, r, d, position % a.part == 0);
      if ((position + 1) % a.part != 0) continue;
      T* kbar = a.kbar.as<T>().data() + place * d;
      for (int64_t i = 0; i < d; ++i) kbar[i] = from_float<T>(state[2 + i] / state[1]);
    }
  });
}

namespace {

/// One token of one sequence in one group.
struct TokenSelect {
  TokenSelect(const DecodeSelect& of, int64_t at)
      : a(of),
        place(at),
        group(at / of.qt.shape()[1]),
        sequence(at % of.qt.shape()[1]),
        pages(of.page_rows.shape()[1]),
        gate_dim(of.qt.shape()[2]),
        position(of.positions.as<int32_t>()[static_cast<size_t>(sequence)]),
        qt(of.qt.as<float>().data() + at * gate_dim) {}

  const DecodeSelect& a;
  int64_t place;
  int64_t group;
  int64_t sequence;
  int64_t pages;
  int64_t gate_dim;
  int64_t position;
  const float* qt;
};

/// Its spans, filled one page after another.
struct PageSpans {
  const TokenSelect& token;
  int64_t count = 0;

  void add(int64_t page, float log_gate) {
    const DecodeSelect& a = token.a;
    const int64_t most = a.spans.shape()[2];
    const auto at = static_cast<size_t>(token.place * most + count++);
    const int64_t rows = std::min(a.block, token.position + 1 - page * a.block);
    a.spans.as<int32_t>()[2 * at] =
        a.page_rows.as<int32_t>()[static_cast<size_t>(token.sequence * token.pages + page)];
    a.spans.as<int32_t>()[2 * at + 1] = static_cast<int32_t>(rows);
    a.log_gates.as<float>()[at] = log_gate;
  }
};

/// Chooses from all complete pages. Returns how many.
int64_t choose_flat(const TokenSelect& token, int64_t candidates, std::span<int32_t> blocks,
                    std::span<float> scores) {
  const DecodeSelect& a = token.a;
  const int64_t key_size = a.gate_keys * token.gate_dim;
  const float* kt = a.kt.as<float>().data() + token.place * token.pages * key_size;
  float* z = a.scores.as<float>().data() + token.place * token.pages;
  for (int64_t i = 0; i < candidates; ++i) {
    const int64_t page = a.rule.sink_blocks + i;
    z[i] = gate_score(token.qt, kt + page * key_size, token.gate_dim, a.gate_keys);
  }
  return choose_blocks({z, static_cast<size_t>(candidates)}, a.rule.sink_blocks, blocks, scores);
}

/// The same from those that the token's beams reach.
int64_t choose_in_tree(const TokenSelect& token, int64_t candidates, std::span<int32_t> blocks,
                       std::span<float> scores) {
  const DecodeSelect& a = token.a;
  const int64_t nodes = tree_rows(token.pages) * token.gate_dim;
  SelectionRow row{.blocks = blocks.data(), .scores = scores.data()};
  search_tree({.nodes = a.nodes.as<float>().data() + token.place * nodes,
               .layout = {token.pages - a.rule.sink_blocks, a.tree.radix},
               .tree = a.tree,
               .qt = token.qt,
               .rows = &row,
               .tokens = 1,
               .gate_dim = token.gate_dim,
               .candidates = candidates,
               .first_block = a.rule.sink_blocks,
               .kept = a.rule.kept});
  return a.rule.kept;
}

void select_pages(const TokenSelect& token) {
  const DecodeSelect& a = token.a;
  CHECK(token.position >= 0 && token.position < token.pages * a.block,
        "decode_select: position is ", token.position, ", expected 0 to ",
        token.pages * a.block - 1, " with ", token.pages, " pages of ", a.block);
  const int64_t own = token.position / a.block;
  const int64_t candidates = a.rule.candidates(own);
  const auto slots = static_cast<size_t>(a.rule.kept + 1);
  const auto row = static_cast<size_t>(token.place) * slots;
  const auto blocks = a.selection.blocks.as<int32_t>().subspan(row, slots);
  const auto scores = a.selection.scores.as<float>().subspan(row, slots);
  const bool tree = a.tree.enabled() && a.tree.first_level(candidates, a.rule.kept) > 0;
  const int64_t chosen = tree ? choose_in_tree(token, candidates, blocks, scores)
                              : choose_flat(token, candidates, blocks, scores);
  a.selection.counts.as<int32_t>()[static_cast<size_t>(token.place)] = static_cast<int32_t>(chosen);

  PageSpans spans{token};
  const int64_t sinks = std::min(a.rule.sink_blocks, own + 1);
  for (int64_t page = 0; page < sinks; ++page) spans.add(page, 0);
  const bool gated = blocks[slots - 1] >= 0;
  const float width = a.ramp.widths.as<float>()[static_cast<size_t>(token.group)];
  for (size_t s = 0; s < static_cast<size_t>(chosen); ++s) {
    spans.add(blocks[s],
              gated ? log_gate(scores[s], scores[slots - 1], a.ramp.strength, width) : 0);
  }
  for (int64_t page = std::max(sinks, own - a.rule.window_blocks + 1); page <= own; ++page) {
    spans.add(page, 0);
  }
  a.counts.as<int32_t>()[static_cast<size_t>(token.place)] = static_cast<int32_t>(spans.count);
}

}  // namespace

void decode_select(ThreadPool& threads, const DecodeSelect& a) {
  threads.for_each(a.qt.shape()[0] * a.qt.shape()[1],
                   [&](int64_t place) { select_pages(TokenSelect(a, place)); });
}

namespace {

/// The online softmax of one group's heads over cache rows.
template <class T>
class Decoder {
 public:
  /// Of group a.groups[place / sequences] in sequence place % sequences.
  Decoder(const DecodeAttention& a, int64_t place)
      : a_(a),
        sequences_(a.q.shape()[0]),
        heads_(a.q.shape()[1] / a.kv_heads),
        first_head_(a.groups[static_cast<size_t>(place / sequences_)] * heads_),
        first_row_(place % sequences_ * a.q.shape()[1] + first_head_),
        d_(a.q.shape()[2]),
        rows_(a.k.shape()[2]),
        q_(a.q.as<T>().data() + first_row_ * d_),
        k_(a.k.as<T>().data() + place * rows_ * d_),
        v_(a.v.as<T>().data() + place * rows_ * d_) {}

  /// Each head reads all keys and values: they stay in the cache between the heads of a group.
  void run(int64_t place) {
    const int64_t most = a_.spans.shape()[2];
    const int64_t list = a_.spans.shape()[0] == 1 ? place % sequences_ : place;
    const int64_t count = a_.counts.template as<int32_t>()[static_cast<size_t>(list)];
    CHECK(count >= 1 && count <= most, "decode_attention: ", count, " spans, expected 1 to ", most);
    const auto spans = a_.spans.template as<int32_t>();
    for (int64_t h = 0; h < heads_; ++h) start(h);
    for (int64_t s = list * most; s < list * most + count; ++s) {
      const int64_t first = spans[static_cast<size_t>(2 * s)];
      const int64_t rows = spans[static_cast<size_t>(2 * s + 1)];
      CHECK(first >= 0 && rows >= 1 && first + rows <= rows_, "decode_attention: a span has rows ",
            first, " to ", first + rows - 1, ", expected 0 to ", rows_ - 1);
      const float gate =
          a_.log_gates.empty() ? 0 : a_.log_gates.template as<float>()[static_cast<size_t>(s)];
      for (int64_t row = first; row < first + rows; row += kChunk) {
        const int64_t chunk = std::min(kChunk, first + rows - row);
        for (int64_t h = 0; h < heads_; ++h) absorb(h, row, chunk, gate);
      }
    }
    for (int64_t h = 0; h < heads_; ++h) finish(h);
  }

 private:
  static constexpr int64_t kChunk = 64;
  static constexpr int64_t kMostHeads = 64;

  struct Head {
    float largest;
    float total;
    std::array<float, kMaxHeadDim> o;
  };

  void start(int64_t h) {
    CHECK(heads_ <= kMostHeads, "decode_attention: ", heads_, " heads per group, expected at most ",
          kMostHeads);
    const auto head = static_cast<size_t>(first_head_ + h);
    Head& state = state_[static_cast<size_t>(h)];
    state.largest = a_.sink_logits.empty() ? kNever : a_.sink_logits.template as<float>()[head];
    state.total = state.largest == kNever ? 0 : 1;
    state.o.fill(0);
  }

  void absorb(int64_t h, int64_t row, int64_t count, float gate) {
    Head& state = state_[static_cast<size_t>(h)];
    alignas(64) std::array<float, kChunk> p;
    p.fill(kNever);
    float largest = state.largest;
    for (int64_t j = 0; j < count; ++j) {
      const float score = a_.scale * dot(q_ + h * d_, k_ + (row + j) * d_, d_) + gate;
      p[static_cast<size_t>(j)] = score;
      largest = std::max(largest, score);
    }
    F32x16 total{};
    for (int64_t j = 0; j < count; j += kLanes) {
      const F32x16 weight = fast_exp(load(p.data() + j) - largest);
      store(p.data() + j, weight);
      total += weight;
    }
    const float keep = fast_exp(state.largest - largest);
    state.largest = largest;
    state.total = state.total * keep + sum(total);
    for (int64_t i = 0; i < d_; i += kLanes) {
      F32x16 o = load(state.o.data() + i) * keep;
      for (int64_t j = 0; j < count; ++j) {
        o += p[static_cast<size_t>(j)] * load_first(v_ + (row + j) * d_ + i, d_ - i);
      }
      store(state.o.data() + i, o);
    }
  }

  void finish(int64_t h) {
    const Head& state = state_[static_cast<size_t>(h)];
    T* o = a_.o.template as<T>().data() + (first_row_ + h) * d_;
    for (int64_t i = 0; i < d_; i += kLanes) {
      store_first(o + i, load(state.o.data() + i) / state.total, d_ - i);
    }
    if (a_.lse.empty()) return;
    a_.lse.template as<float>()[static_cast<size_t>(first_row_ + h)] =
        state.largest + std::log(state.total);
  }

  const DecodeAttention& a_;
  int64_t sequences_;
  int64_t heads_;
  int64_t first_head_;
  int64_t first_row_;  // of q, o and lse
  int64_t d_;
  int64_t rows_;
  const T* q_;
  const T* k_;
  const T* v_;
  std::array<Head, kMostHeads> state_;
};

}  // namespace

void decode_attention(ThreadPool& threads, const DecodeAttention& a) {
  with_float_type(a.q.dtype(), [&]<class T>() {
    threads.for_each(a.k.shape()[0] * a.k.shape()[1],
                     [&](int64_t place) { Decoder<T>(a, place).run(place); });
  });
}

}  // namespace tessera::cpu
