#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention_run.h"
#include "kernels/core/fast_math.h"

namespace tessera::cpu {

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr int64_t kStrip = 16;  // rows at once: scores and weights stay in the L1 cache
// 256 KB of f32 per state: with the copies of q and d_o a run fits into an L2 cache of 1 MB.
constexpr int64_t kStateNumbers = 65536;

template <class T>
const T* row_pointer(const HeadRows<const T>& x, const Piece& piece, int64_t row, int64_t heads,
                     int64_t first_head) {
  return x.at(piece.query_origin + piece.first + row / heads, first_head + row % heads);
}

}  // namespace

int64_t run_heads(int64_t heads) {
  const int64_t runs = (heads + 3) / 4;
  return (heads + runs - 1) / runs;
}

int64_t run_tokens(int64_t heads, int64_t d) {
  const int64_t tokens = kStateNumbers / (heads * ((d + 15) / 16 * 16)) / 16 * 16;
  return std::clamp<int64_t>(tokens, 16, Attendees::kMost);
}

Piece find_piece(const Stretches& pieces, int64_t length, int64_t number) {
  const StretchPart part = find_part(pieces, length, number);
  return {pieces.segment(part.stretch), part.stretch, pieces.origin(part.stretch), part.first,
          part.count};
}

RowBatches::RowBatches(const Attendees& tokens, const KeyPanel& panel, int64_t window,
                       int64_t sinks, int64_t heads, int64_t most)
    : tokens_(tokens),
      panel_(panel),
      window_(window),
      sinks_(std::clamp<int64_t>(sinks - panel.first, 0, panel.count)),
      heads_(heads),
      most_(most) {}

bool RowBatches::next(RowBatch& batch) {
  batch.rows = 0;
  batch.sinks = static_cast<int32_t>(sinks_);
  int64_t lowest = kPanel;
  int64_t highest = -1;
  while (row_ < tokens_.count * heads_ && batch.rows < most_) {
    const auto entry = static_cast<size_t>(row_ / heads_);
    const int64_t ahead = tokens_.position[entry] - panel_.first;
    const int64_t high = std::min(ahead, panel_.count - 1);
    const int64_t low = std::max<int64_t>(0, ahead - window_ + 1);
    if (high < 0 || (low > high && sinks_ == 0)) {
      row_ += heads_ - row_ % heads_;
      continue;
    }
    const auto row = static_cast<size_t>(batch.rows++);
    batch.position[row] = tokens_.position[entry];
    batch.token[row] = tokens_.token[entry];
    batch.head[row] = static_cast<int32_t>(row_ % heads_);
    batch.slot[row] = tokens_.slot[entry];
    batch.log_gate[row] = tokens_.log_gate[entry];
    batch.low[row] = static_cast<int32_t>(std::min(low, kPanel));
    batch.high[row] = static_cast<int32_t>(high);
    lowest = std::min(lowest, sinks_ > 0 ? 0 : low);
    highest = std::max(highest, high);
    ++row_;
  }
  batch.first_vector = lowest / kLanes;
  batch.end_vector = highest / kLanes + 1;
  batch.edge = false;
  for (size_t row = 0; row < static_cast<size_t>(batch.rows); ++row) {
    const bool low =
        batch.low[row] > batch.first_vector * kLanes && batch.sinks < batch.end_vector * kLanes;
    if (low || batch.high[row] + 1 < batch.end_vector * kLanes) batch.edge = true;
  }
  return batch.rows > 0;
}

template <class T>
ForwardRun<T>::ForwardRun(const AttentionOperands<T>& in, const Output& out, const Piece& piece,
                          int64_t first_head, int64_t heads, Scratch& scratch)
    : in_(in),
      out_(out),
      piece_(piece),
      first_head_(first_head),
      heads_(heads),
      width_((in.q.d + kLanes - 1) / kLanes * kLanes) {
  const int64_t rows = piece.count * heads;
  const int64_t factors = in.q.d / kPerFactor<T>;
  q_ = scratch.take<Factor<T>>(rows * factors);
  o_ = scratch.take<float>(rows * width_);
  largest_ = scratch.take<float>(rows);
  sums_ = scratch.take<float>(rows * kLanes);
  keys_ = scratch.take<Factor<T>>(factors * kPanel);
  values_ = scratch.take<Factor<T>>(kPanel / kPerFactor<T> * width_);
  scores_ = scratch.take<float>(kStrip * kPanel);
  weights_ = scratch.take<Factor<T>>(kStrip * kPanel / kPerFactor<T>);

  std::fill_n(o_, rows * width_, 0.0f);
  std::fill_n(sums_, rows * kLanes, 0.0f);
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(row_pointer(in.q, piece, row, heads, first_head), in.q.d,
                reinterpret_cast<T*>(q_ + row * factors));
    // The sink is a key with score a_h and no value.
    largest_[row] = out.sink_logits == nullptr ? kNever : out.sink_logits[first_head + row % heads];
    sums_[row * kLanes] = largest_[row] == kNever ? 0.0f : 1.0f;
  }
}

template <class T>
void ForwardRun<T>::attend(const KeyPanel& panel, const Attendees& tokens, bool first_of_block) {
  const T* rows[kPanel];
  for (int64_t i = 0; i < panel.count; ++i) rows[i] = in_.k.at(panel.row + i, panel.head);
  pack_columns<T>(keys_, rows, panel.count, in_.k.d);
  for (int64_t i = 0; i < panel.count; ++i) rows[i] = in_.v.at(panel.row + i, panel.head);
  pack_rows<T>(values_, rows, panel.count, in_.v.d);
  // Weights of keys beyond the panel are 0, but 0 times what memory held before may be NaN.
  const int64_t packed = (panel.count + kPerFactor<T> - 1) / kPerFactor<T>;
  std::fill(values_ + packed * width_, values_ + kPanel / kPerFactor<T> * width_, Factor<T>{});

  RowBatches batches(tokens, panel, in_.window, in_.sinks, heads_, kStrip);
  RowBatch batch;
  while (batches.next(batch)) absorb(batch, panel, first_of_block);
}

template <class T>
void ForwardRun<T>::absorb(const RowBatch& batch, const KeyPanel& panel, bool first_of_block) {
  const int64_t factors = in_.q.d / kPerFactor<T>;
  const int64_t vectors = batch.end_vector - batch.first_vector;
  const auto rows = static_cast<size_t>(batch.rows);
  const Factor<T>* a[kStrip];
  float* c[kStrip];
  for (size_t r = 0; r < rows; ++r) {
    a[r] = q_ + state(batch, r) * factors;
    c[r] = scores_ + static_cast<int64_t>(r) * kPanel;
  }
  multiply<Factor<T>>({c, nullptr, a, 1, keys_ + batch.first_vector * kLanes, kPanel, batch.rows,
                       factors, vectors * kLanes});

  alignas(64) float before[kStrip] = {};
  alignas(64) float top[kStrip] = {};
  for (size_t r = 0; r < rows; ++r) {
    F32x16 best = broadcast(kNever);
    for (int64_t v = 0; v < vectors; ++v) {
      F32x16 x = load(c[r] + v * kLanes);
      if (batch.edge)
        store(c[r] + v * kLanes, x = hide(x, batch, r, batch.first_vector + v, kNever));
      best = x > best ? x : best;
    }
    before[r] = largest_[state(batch, r)];
    top[r] = largest(best) * in_.scale + batch.log_gate[r];
  }
  const F32x16 was = load(before);
  const F32x16 now = was > load(top) ? was : load(top);
  alignas(64) float keep[kStrip];
  alignas(64) float largest_now[kStrip];
  store(keep, fast_exp(was - now));
  store(largest_now, now);

  float* o[kStrip];
  const Factor<T>* weights[kStrip];
  for (size_t r = 0; r < rows; ++r) {
    const int64_t row = state(batch, r);
    const float shift = largest_now[r] - batch.log_gate[r];
    F32x16 total{};
    for (int64_t v = 0; v < vectors; ++v) {
      const F32x16 p = fast_exp(load(c[r] + v * kLanes) * in_.scale - shift);
      total += p;
      store(c[r] + v * kLanes, p);
    }
    store(sums_ + row * kLanes, load(sums_ + row * kLanes) * keep[r] + total);
    largest_[row] = largest_now[r];
    Factor<T>* to = weights_ + static_cast<int64_t>(r) * kPanel / kPerFactor<T>;
    to_factors<T>(to, c[r], vectors);
    weights[r] = to;
    o[r] = o_ + row * width_;
    if (out_.block_lse != nullptr && batch.slot[r] >= 0) {
      keep_block_lse(batch, r, panel, first_of_block, shift, sum(total));
    }
  }
  multiply<Factor<T>>({o, keep, weights, 1,
                       values_ + batch.first_vector * kLanes / kPerFactor<T> * width_, width_,
                       batch.rows, vectors * kLanes / kPerFactor<T>, width_});
}

/// `total` is sum_j exp(score_j - shift) over the panel.
template <class T>
void ForwardRun<T>::keep_block_lse(const RowBatch& batch, size_t row, const KeyPanel& panel,
                                   bool first_of_block, float shift, float total) {
  float lse = std::log(total) + shift;
  if (!(total > 1e-30f)) lse = faraway_lse(batch, row, panel);
  const int64_t head = in_.map.in_group(first_head_ + batch.head[row]);
  const int64_t row_of_heads = batch.token[row] * in_.map.group_heads + head;
  float& kept = out_.block_lse[row_of_heads * out_.kept + batch.slot[row]];
  if (!first_of_block) {
    const float larger = std::max(kept, lse);
    lse = larger + std::log1p(std::exp(std::min(kept, lse) - larger));
  }
  kept = lse;
}

/// log sum_j exp(score_j) over the panel of a row whose largest score lies elsewhere: so far above
/// that these exponentials underflowed.
template <class T>
float ForwardRun<T>::faraway_lse(const RowBatch& batch, size_t row, const KeyPanel& panel) const {
  const T* q = in_.q.at(batch.token[row], first_head_ + batch.head[row]);
  std::array<float, kPanel> scores;
  float best = kNever;
  for (int64_t j = 0; j < panel.count; ++j) {
    const T* k = in_.k.at(panel.row + j, panel.head);
    float dot = 0;
    for (int64_t i = 0; i < in_.q.d; ++i) dot += to_float(q[i]) * to_float(k[i]);
    scores[static_cast<size_t>(j)] = dot * in_.scale;
    best = std::max(best, dot * in_.scale);
  }
  float total = 0;
  for (int64_t j = 0; j < panel.count; ++j) {
    total += std::exp(scores[static_cast<size_t>(j)] - best);
  }
  return best + std::log(total);
}

template <class T>
void ForwardRun<T>::finish() {
  for (int64_t row = 0; row < piece_.count * heads_; ++row) {
    const int64_t token = piece_.query_origin + piece_.first + row / heads_;
    const int64_t head = first_head_ + row % heads_;
    const float total = sum(load(sums_ + row * kLanes));
    out_.lse[head * in_.tokens + token] = largest_[row] + std::log(total);
    const F32x16 inverse = broadcast(1.0f / total);
    T* o = out_.o.at(token, head);
    for (int64_t i = 0; i < in_.q.d; i += kLanes) {
      store_first(o + i, load(o_ + row * width_ + i) * inverse, in_.q.d - i);
    }
  }
}

template class ForwardRun<float>;
template class ForwardRun<BF16>;

}  // namespace tessera::cpu
