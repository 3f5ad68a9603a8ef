#include <algorithm>

#include "kernels/attention_gradient.h"
#include "kernels/core/fast_math.h"

namespace tessera::cpu {

namespace {

constexpr int64_t kStrip = 16;  // rows of dq at once

constexpr std::array<float, kPanel> ones() {
  std::array<float, kPanel> all{};
  all.fill(1.0f);
  return all;
}
constexpr std::array<float, kPanel> kOnes = ones();
constexpr std::array<float, kPanel> kZeros{};

/// The rows of x that belong to the keys of a panel.
template <class T>
void panel_rows(const T** rows, const HeadRows<const T>& x, const KeyPanel& panel) {
  for (int64_t i = 0; i < panel.count; ++i) rows[i] = x.at(panel.row + i, panel.head);
}

int64_t rounded(int64_t d) {
  return (d + kLanes - 1) / kLanes * kLanes;
}

/// Turns scores into p and dweights = d_o . v into ds, in place, for one row. Returns sum_j ds.
[[gnu::always_inline]] inline float differentiate(float* scores, float* dweights,
                                                  const RowBatch& batch, size_t row, float scale,
                                                  float lse, float delta) {
  const float shift = lse - batch.log_gate[row];
  F32x16 total{};
  for (int64_t v = 0; v < batch.end_vector - batch.first_vector; ++v) {
    F32x16 p = fast_exp(load(scores + v * kLanes) * scale - shift);
    if (batch.edge) p = hide(p, batch, row, batch.first_vector + v, 0.0f);
    const F32x16 ds = p * (load(dweights + v * kLanes) - delta);
    store(scores + v * kLanes, p);
    store(dweights + v * kLanes, ds);
    total += ds;
  }
  return sum(total);
}

}  // namespace

template <class T>
QueryGradientRun<T>::QueryGradientRun(const AttentionOperands<T>& in,
                                      const GradientOperands<T>& gradient, const Output& out,
                                      const Piece& piece, int64_t first_head, int64_t heads,
                                      Scratch& scratch)
    : in_(in),
      gradient_(gradient),
      out_(out),
      piece_(piece),
      first_head_(first_head),
      heads_(heads),
      width_(rounded(in.q.d)) {
  const int64_t rows = piece.count * heads;
  const int64_t factors = in.q.d / kPerFactor<T>;
  q_ = scratch.take<Factor<T>>(rows * factors);
  d_o_ = scratch.take<Factor<T>>(rows * factors);
  dq_ = scratch.take<float>(rows * width_);
  keys_ = scratch.take<Factor<T>>(factors * kPanel);
  values_ = scratch.take<Factor<T>>(factors * kPanel);
  key_rows_ = scratch.take<Factor<T>>(kPanel / kPerFactor<T> * width_);
  scores_ = scratch.take<float>(kStrip * kPanel);
  dweights_ = scratch.take<float>(kStrip * kPanel);
  dscores_ = scratch.take<Factor<T>>(kStrip * kPanel / kPerFactor<T>);

  std::fill_n(dq_, rows * width_, 0.0f);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t token = piece.query_origin + piece.first + row / heads;
    const int64_t head = first_head + row % heads;
    std::copy_n(in.q.at(token, head), in.q.d, reinterpret_cast<T*>(q_ + row * factors));
    std::copy_n(gradient.d_o.at(token, head), in.q.d, reinterpret_cast<T*>(d_o_ + row * factors));
  }
}

template <class T>
void QueryGradientRun<T>::attend(const KeyPanel& panel, const Attendees& tokens) {
  const T* rows[kPanel];
  panel_rows(rows, in_.v, panel);
  pack_columns<T>(values_, rows, panel.count, in_.v.d);
  panel_rows(rows, in_.k, panel);
  pack_columns<T>(keys_, rows, panel.count, in_.k.d);
  pack_rows<T>(key_rows_, rows, panel.count, in_.k.d);
  // ds of keys beyond the panel is 0, but 0 times what memory held before may be NaN.
  const int64_t packed = (panel.count + kPerFactor<T> - 1) / kPerFactor<T>;
  std::fill(key_rows_ + packed * width_, key_rows_ + kPanel / kPerFactor<T> * width_, Factor<T>{});

  RowBatches batches(tokens, panel, in_.window, in_.sinks, heads_, kStrip);
  RowBatch batch;
  while (batches.next(batch)) absorb(batch);
}

template <class T>
void QueryGradientRun<T>::absorb(const RowBatch& batch) {
  const int64_t factors = in_.q.d / kPerFactor<T>;
  const int64_t vectors = batch.end_vector - batch.first_vector;
  const auto rows = static_cast<size_t>(batch.rows);
  const Factor<T>* q[kStrip];
  const Factor<T>* d_o[kStrip];
  const Factor<T>* ds[kStrip];
  float* scores[kStrip];
  float* dweights[kStrip];
  float* dq[kStrip];
  for (size_t r = 0; r < rows; ++r) {
    const int64_t row = state(batch, r);
    const auto strip_row = static_cast<int64_t>(r);
    q[r] = q_ + row * factors;
    d_o[r] = d_o_ + row * factors;
    dq[r] = dq_ + row * width_;
    scores[r] = scores_ + strip_row * kPanel;
    dweights[r] = dweights_ + strip_row * kPanel;
    ds[r] = dscores_ + strip_row * kPanel / kPerFactor<T>;
  }
  const int64_t first_key = batch.first_vector * kLanes;
  multiply<Factor<T>>(
      {scores, nullptr, q, 1, keys_ + first_key, kPanel, batch.rows, factors, vectors * kLanes});
  multiply<Factor<T>>({dweights, nullptr, d_o, 1, values_ + first_key, kPanel, batch.rows, factors,
                       vectors * kLanes});
  for (size_t r = 0; r < rows; ++r) {
    const int64_t token = batch.token[r];
    const int64_t at = (first_head_ + batch.head[r]) * in_.tokens + token;
    const float total = differentiate(scores[r], dweights[r], batch, r, in_.scale,
                                      gradient_.lse[at], gradient_.delta[at]);
    if (batch.slot[r] >= 0) out_.dlog_gate[token * out_.kept + batch.slot[r]] += total;
    to_factors<T>(dscores_ + static_cast<int64_t>(r) * kPanel / kPerFactor<T>, dweights[r],
                  vectors);
  }
  multiply<Factor<T>>({dq, kOnes.data(), ds, 1, key_rows_ + first_key / kPerFactor<T> * width_,
                       width_, batch.rows, vectors * kLanes / kPerFactor<T>, width_});
}

template <class T>
void QueryGradientRun<T>::finish() {
  for (int64_t row = 0; row < piece_.count * heads_; ++row) {
    const int64_t token = piece_.query_origin + piece_.first + row / heads_;
    T* dq = out_.dq.at(token, first_head_ + row % heads_);
    for (int64_t i = 0; i < in_.q.d; i += kLanes) {
      store_first(dq + i, load(dq_ + row * width_ + i) * in_.scale, in_.q.d - i);
    }
  }
}

template <class T>
KeyGradientPanel<T>::KeyGradientPanel(const AttentionOperands<T>& in,
                                      const GradientOperands<T>& gradient, const KeyPanel& panel,
                                      Scratch& scratch)
    : in_(in),
      gradient_(gradient),
      panel_(panel),
      first_head_(in.map.begin_of(panel.head)),
      heads_(in.map.count_of(panel.head)),
      width_(rounded(in.q.d)) {
  const int64_t factors = in.q.d / kPerFactor<T>;
  keys_ = scratch.take<Factor<T>>(factors * kPanel);
  values_ = scratch.take<Factor<T>>(factors * kPanel);
  dk_ = scratch.take<float>(kPanel * width_);
  dv_ = scratch.take<float>(kPanel * width_);
  scores_ = scratch.take<float>(RowBatch::kMost * kPanel);
  dweights_ = scratch.take<float>(RowBatch::kMost * kPanel);
  weights_ = scratch.take<Factor<T>>(RowBatch::kMost / kPerFactor<T> * kPanel);
  dscores_ = scratch.take<Factor<T>>(RowBatch::kMost / kPerFactor<T> * kPanel);
  q_rows_ = scratch.take<Factor<T>>(RowBatch::kMost / kPerFactor<T> * width_);
  d_o_rows_ = scratch.take<Factor<T>>(RowBatch::kMost / kPerFactor<T> * width_);

  std::fill_n(dk_, kPanel * width_, 0.0f);
  std::fill_n(dv_, kPanel * width_, 0.0f);
  const T* rows[kPanel];
  panel_rows(rows, in.k, panel);
  pack_columns<T>(keys_, rows, panel.count, in.k.d);
  panel_rows(rows, in.v, panel);
  pack_columns<T>(values_, rows, panel.count, in.v.d);
}

template <class T>
void KeyGradientPanel<T>::attend(const Attendees& tokens) {
  RowBatches batches(tokens, panel_, in_.window, in_.sinks, heads_, RowBatch::kMost);
  RowBatch batch;
  while (batches.next(batch)) absorb(batch);
}

/// Weights and ds of a batch, as factors whose pairs are neighbouring rows.
template <class T>
void KeyGradientPanel<T>::weigh(const RowBatch& batch) {
  const int64_t vectors = batch.end_vector - batch.first_vector;
  for (int64_t r = 0; r < batch.rows; ++r) {
    const auto row = static_cast<size_t>(r);
    const int64_t at = (first_head_ + batch.head[row]) * in_.tokens + batch.token[row];
    differentiate(scores_ + r * kPanel, dweights_ + r * kPanel, batch, row, in_.scale,
                  gradient_.lse[at], gradient_.delta[at]);
  }
  for (int64_t r = 0; r < batch.rows; r += 2) {
    const bool pair = r + 1 < batch.rows;
    const int64_t to = r / kPerFactor<T> * kPanel;
    to_factors_of_two_rows<T>(weights_ + to, scores_ + r * kPanel,
                              pair ? scores_ + (r + 1) * kPanel : kZeros.data(), vectors);
    to_factors_of_two_rows<T>(dscores_ + to, dweights_ + r * kPanel,
                              pair ? dweights_ + (r + 1) * kPanel : kZeros.data(), vectors);
  }
}

template <class T>
void KeyGradientPanel<T>::absorb(const RowBatch& batch) {
  const int64_t factors = in_.q.d / kPerFactor<T>;
  const int64_t first_key = batch.first_vector * kLanes;
  const int64_t keys = (batch.end_vector - batch.first_vector) * kLanes;
  const T* q[RowBatch::kMost];
  const T* d_o[RowBatch::kMost];
  const Factor<T>* a[RowBatch::kMost];
  float* c[RowBatch::kMost];
  for (int64_t r = 0; r < batch.rows; ++r) {
    const auto row = static_cast<size_t>(r);
    const int64_t head = first_head_ + batch.head[row];
    q[r] = in_.q.at(batch.token[row], head);
    d_o[r] = gradient_.d_o.at(batch.token[row], head);
    a[r] = reinterpret_cast<const Factor<T>*>(q[r]);
    c[r] = scores_ + r * kPanel;
  }
  multiply<Factor<T>>({c, nullptr, a, 1, keys_ + first_key, kPanel, batch.rows, factors, keys});
  for (int64_t r = 0; r < batch.rows; ++r) {
    a[r] = reinterpret_cast<const Factor<T>*>(d_o[r]);
    c[r] = dweights_ + r * kPanel;
  }
  multiply<Factor<T>>({c, nullptr, a, 1, values_ + first_key, kPanel, batch.rows, factors, keys});
  weigh(batch);

  pack_rows<T>(q_rows_, q, batch.rows, in_.q.d);
  pack_rows<T>(d_o_rows_, d_o, batch.rows, in_.q.d);
  const int64_t inner = (batch.rows + kPerFactor<T> - 1) / kPerFactor<T>;
  const int64_t seen = std::min(keys, panel_.count - first_key);
  for (int64_t key = 0; key < seen; ++key) {
    a[key] = weights_ + key;
    c[key] = dv_ + (first_key + key) * width_;
  }
  multiply<Factor<T>>({c, kOnes.data(), a, kPanel, d_o_rows_, width_, seen, inner, width_});
  for (int64_t key = 0; key < seen; ++key) {
    a[key] = dscores_ + key;
    c[key] = dk_ + (first_key + key) * width_;
  }
  multiply<Factor<T>>({c, kOnes.data(), a, kPanel, q_rows_, width_, seen, inner, width_});
}

template <class T>
void KeyGradientPanel<T>::finish(const HeadRows<T>& dk, const HeadRows<T>& dv) {
  for (int64_t key = 0; key < panel_.count; ++key) {
    T* to_k = dk.at(panel_.row + key, panel_.head);
    T* to_v = dv.at(panel_.row + key, panel_.head);
    for (int64_t i = 0; i < in_.k.d; i += kLanes) {
      store_first(to_k + i, load(dk_ + key * width_ + i) * in_.scale, in_.k.d - i);
      store_first(to_v + i, load(dv_ + key * width_ + i), in_.k.d - i);
    }
  }
}

namespace {

template <class T>
float dot(const T* a, const T* b, int64_t d) {
  F32x16 total{};
  for (int64_t i = 0; i < d; i += kLanes) {
    total += load_first(a + i, d - i) * load_first(b + i, d - i);
  }
  return sum(total);
}

/// sum_i exp(a_h - L_i) delta_i of one head.
double sink_share(const float* lse, const float* delta, int64_t tokens, float sink_logit) {
  double total = 0;
  for (int64_t i = 0; i < tokens; i += kLanes) {
    const F32x16 log_weight = sink_logit - load_first(lse + i, tokens - i);
    // Lanes beyond the last token have delta 0; their weight must only be finite.
    const F32x16 weight = fast_exp(log_weight < 0.0f ? log_weight : F32x16{});
    total += static_cast<double>(sum(weight * load_first(delta + i, tokens - i)));
  }
  return total;
}

}  // namespace

void attention_delta(ThreadPool& threads, const AttentionDelta& a) {
  constexpr int64_t kGrain = 64;
  const int64_t tokens = a.d_o.shape()[0];
  const int64_t heads = a.d_o.shape()[1];
  const int64_t d = a.d_o.shape()[2];
  float* delta = a.delta.as<float>().data();
  with_float_type(a.d_o.dtype(), [&]<class T>() {
    const HeadRows<const T> d_o{a.d_o.as<T>().data(), heads, d};
    const HeadRows<const T> o{a.o.as<T>().data(), heads, d};
    threads.for_ranges(tokens, kGrain, [&](int64_t begin, int64_t end) {
      for (const int32_t group : a.groups) {
        for (int64_t head = a.map.begin_of(group); head < a.map.begin_of(group + 1); ++head) {
          for (int64_t token = begin; token < end; ++token) {
            delta[head * tokens + token] = dot(d_o.at(token, head), o.at(token, head), d);
          }
        }
      }
    });
  });
  if (a.sink_logits.empty()) return;
  const auto sink_logits = a.sink_logits.as<float>();
  const auto dsink_logits = a.dsink_logits.as<float>();
  const float* lse = a.lse.as<float>().data();
  const int64_t group_heads = a.map.group_heads;
  threads.for_each(static_cast<int64_t>(a.groups.size()) * group_heads, [&](int64_t i) {
    const int64_t group = a.groups[static_cast<size_t>(i / group_heads)];
    if (i % group_heads >= a.map.count_of(group)) return;
    const auto head = static_cast<size_t>(a.map.begin_of(group) + i % group_heads);
    const int64_t row = static_cast<int64_t>(head) * tokens;
    dsink_logits[head] -=
        static_cast<float>(sink_share(lse + row, delta + row, tokens, sink_logits[head]));
  });
}

template class QueryGradientRun<float>;
template class QueryGradientRun<BF16>;
template class KeyGradientPanel<float>;
template class KeyGradientPanel<BF16>;

}  // namespace tessera::cpu
