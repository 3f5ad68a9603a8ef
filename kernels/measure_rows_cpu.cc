#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/fast_math.h"
#include "kernels/gate_measure.h"
#include "kernels/gate_score.h"
#include "kernels/head_map.h"

// A task is a sampled row and a group. It reads the keys before the row once, for all heads of the
// group: 64 at a time, of one block, so that all of them are attended to alike.

namespace tessera::cpu {

namespace {

constexpr int64_t kPanelKeys = 64;

/// What one row adds.
struct RowSums {
  std::array<double, GateFigures::kTiles> figures{};
  std::array<double, kMapBins> map{};
  int64_t map_row = 0;
};

/// Where a sampled row is.
struct Place {
  int64_t token;       // row of q
  int64_t at;          // position in its segment
  int64_t key_origin;  // row of k of position 0
  int64_t shift;       // position in the sequence of position 0 of the segment
};

Place find_place(const MeasureGateRows& a, int64_t sample) {
  const auto samples = a.samples.as<int32_t>();
  const int64_t token = samples[static_cast<size_t>(2 * sample)];
  const int64_t in_sequence = samples[static_cast<size_t>(2 * sample + 1)];
  CHECK(token >= 0 && token < a.grid.tokens(), "measure_gate_rows: sample ", sample, " is row ",
        token, ", expected 0 to ", a.grid.tokens() - 1);
  CHECK(in_sequence >= 0 && in_sequence < a.sequence_length, "measure_gate_rows: sample ", sample,
        " is at ", in_sequence, " of its sequence of ", a.sequence_length, " tokens");
  const Stretches pieces = pieces_of(a.grid);
  const Stretches runs = runs_of(a.grid);
  const int64_t piece = range_of(pieces.starts, token);
  const int64_t at = token - pieces.origin(piece);
  const int64_t run = runs.begin_of(pieces.segment(piece));
  CHECK(run < runs.size() && runs.segment(run) == pieces.segment(piece) && runs.first(run) == 0 &&
            runs.end(run) > at,
        "measure_gate_rows: the keys of segment ", pieces.segment(piece),
        " are not one run from its first to position ", at);
  CHECK(at <= in_sequence, "measure_gate_rows: sample ", sample, " is at ", in_sequence,
        " of its sequence, but at ", at, " of its segment");
  return {token, at, runs.row(run), in_sequence - at};
}

/// The softmax of full attention so far: sums of exp(s - highest).
struct Full {
  float highest = -std::numeric_limits<float>::infinity();
  float all = 0;
  float kept = 0;

  void raise(float to) {
    if (to <= highest) return;
    const float factor = all > 0 ? fast_exp(highest - to) : 0;
    all *= factor;
    kept *= factor;
    highest = to;
  }
};

template <class T>
class RowMeasure {
 public:
  RowMeasure(const MeasureGateRows& a, int64_t group, const Place& place, RowSums& sums)
      : a_(a),
        group_(group),
        place_(place),
        sums_(sums),
        d_(a.q.shape()[2]),
        kv_heads_(a.k.shape()[1]),
        kv_head_(a.groups[static_cast<size_t>(group)]),
        heads_(a.q.shape()[1] / kv_heads_),
        padded_((d_ + kLanes - 1) / kLanes * kLanes),
        q_(static_cast<size_t>(heads_ * padded_)),
        scores_(static_cast<size_t>(heads_ * kPanelKeys)),
        full_(static_cast<size_t>(heads_)),
        lse_(static_cast<size_t>(heads_)) {
    const T* q = a.q.as<T>().data() + (place.token * a.q.shape()[1] + kv_head_ * heads_) * d_;
    for (int64_t h = 0; h < heads_; ++h) {
      for (int64_t e = 0; e < d_; ++e) {
        q_[static_cast<size_t>(h * padded_ + e)] = a.scale * to_float(q[h * d_ + e]);
      }
      const auto head = static_cast<size_t>(kv_head_ * heads_ + h);
      lse_[static_cast<size_t>(h)] = a.lse.as<float>()[head * static_cast<size_t>(a.grid.tokens()) +
                                                       static_cast<size_t>(place.token)];
      if (a.sink_logits.empty()) continue;
      full_[static_cast<size_t>(h)] = {a.sink_logits.as<float>()[head], 1, 1};
    }
    find_choice();
  }

  void run() {
    const int64_t own = place_.at / a_.grid.block;
    for (int64_t block = 0; block <= own; ++block) {
      const bool in_window = block > own - a_.rule.window_blocks;
      const bool in_sink = !in_window && block < a_.rule.sink_blocks;
      const bool selected = !in_window && !in_sink;
      const int64_t slot = selected ? find_slot(block) : -1;
      attended_ = !selected || resting() || slot >= 0;
      log_gate_ = slot >= 0 ? log_gate_of(slot) : 0;
      figure_ = in_window ? GateFigures::kWindow
                          : (in_sink ? GateFigures::kSink : GateFigures::kSelected);
      const int64_t end = std::min((block + 1) * a_.grid.block, place_.at + 1);
      for (int64_t key = block * a_.grid.block; key < end; key += kPanelKeys) {
        panel(key, std::min(kPanelKeys, end - key));
      }
    }
    double kept = 0;
    for (const Full& full : full_) kept += static_cast<double>(full.kept / full.all);
    figure(GateFigures::kRows) = 1;
    figure(GateFigures::kKept) = kept / static_cast<double>(heads_);
    if (!resting()) measure_choice();
  }

 private:
  bool resting() const { return a_.selection.blocks.empty(); }
  double& figure(GateFigures::Place place) { return sums_.figures[place]; }

  void find_choice() {
    if (resting()) return;
    const int64_t slots = a_.selection.kept() + 1;
    const int64_t row = group_ * a_.grid.tokens() + place_.token;
    blocks_ = a_.selection.blocks.as<int32_t>().data() + row * slots;
    z_ = a_.selection.scores.as<float>().data() + row * slots;
    count_ = a_.selection.counts.as<int32_t>()[static_cast<size_t>(row)];
    dropped_ = blocks_[slots - 1] >= 0;
    tau_ = z_[slots - 1];
    width_ = a_.ramp.widths.as<float>()[static_cast<size_t>(group_)];
  }
  int64_t find_slot(int64_t block) const {
    const int32_t* const found = std::lower_bound(blocks_, blocks_ + count_, block);
    return found < blocks_ + count_ && *found == block ? found - blocks_ : -1;
  }
  float log_gate_of(int64_t slot) const {
    return dropped_ ? log_gate(z_[slot], tau_, a_.ramp.strength, width_) : 0;
  }

  void panel(int64_t first, int64_t count) {
    const T* k = a_.k.as<T>().data() + ((place_.key_origin + first) * kv_heads_ + kv_head_) * d_;
    for (int64_t j = 0; j < count; ++j, k += kv_heads_ * d_) {
      for (int64_t h = 0; h < heads_; ++h) {
        F32x16 product{};
        for (int64_t e = 0; e < d_; e += kLanes) {
          product += load(q_.data() + h * padded_ + e) * load_first(k + e, d_ - e);
        }
        scores_[static_cast<size_t>(h * kPanelKeys + j)] = sum(product);
      }
    }
    std::array<float, kPanelKeys> mass{};
    for (int64_t h = 0; h < heads_; ++h) add_head(h, count, mass.data());
    if (!attended_) return;
    double total = 0;
    for (int64_t j = 0; j < count; ++j) {
      const double share =
          static_cast<double>(mass[static_cast<size_t>(j)]) / static_cast<double>(heads_);
      total += share;
      const int64_t bin = (place_.shift + first + j) * kMapBins / a_.sequence_length;
      sums_.map[static_cast<size_t>(bin)] += share;
    }
    figure(figure_) += total;
  }
  void add_head(int64_t h, int64_t count, float* mass) {
    const auto head = static_cast<size_t>(h);
    float* const s = scores_.data() + h * kPanelKeys;
    std::fill(s + count, s + kPanelKeys, -std::numeric_limits<float>::infinity());
    F32x16 highest = load(s);
    for (int64_t j = kLanes; j < kPanelKeys; j += kLanes) highest = larger(highest, load(s + j));
    Full& full = full_[head];
    full.raise(largest(highest));
    F32x16 all{};
    for (int64_t j = 0; j < kPanelKeys; j += kLanes) {
      all += fast_exp(load(s + j) - full.highest);
    }
    full.all += sum(all);
    if (!attended_) return;
    full.kept += sum(all);
    for (int64_t j = 0; j < kPanelKeys; j += kLanes) {
      store(mass + j, load(mass + j) + fast_exp(load(s + j) + (log_gate_ - lse_[head])));
    }
  }

  /// What the gate thinks of the chosen blocks, and what attention does.
  void measure_choice() {
    if (count_ >= 2) {
      figure(GateFigures::kChoosing) = 1;
      compare_with_attention();
    }
    if (!dropped_) return;
    float least = z_[0];
    int64_t ramped = 0;
    for (int64_t s = 0; s < count_; ++s) {
      least = std::min(least, z_[s]);
      ramped += (z_[s] - tau_) / width_ < 1;
    }
    figure(GateFigures::kDropping) = 1;
    figure(GateFigures::kMargin) = static_cast<double>(least - tau_);
    figure(GateFigures::kRamped) = static_cast<double>(ramped) / static_cast<double>(count_);
  }
  void compare_with_attention() {
    const auto count = static_cast<size_t>(count_);
    const int64_t kept = a_.selection.kept();
    const float* block_lse = a_.block_lse.as<float>().data() +
                             (group_ * a_.grid.tokens() + place_.token) * heads_ * kept;
    std::vector<float> p(count);
    std::vector<float> target(count);
    for (int64_t h = 0; h < heads_; ++h) {
      softmax(block_lse + h * kept, p);
      for (size_t s = 0; s < count; ++s) target[s] += p[s] / static_cast<float>(heads_);
    }
    const float lse = softmax(z_, p);
    double entropy = 0;
    double kl = 0;
    for (size_t s = 0; s < count; ++s) {
      const float log_p = z_[s] - lse;
      entropy -= static_cast<double>(p[s] * log_p);
      if (target[s] >= 1e-37f) kl += static_cast<double>(target[s] * (gate_log(target[s]) - log_p));
    }
    figure(GateFigures::kEntropy) = entropy;
    figure(GateFigures::kKl) = kl;
  }
  /// p = exp(x - lse(x)); returns lse(x).
  static float softmax(const float* x, std::vector<float>& p) {
    const float highest = *std::max_element(x, x + p.size());
    float total = 0;
    for (size_t s = 0; s < p.size(); ++s) total += p[s] = fast_exp(x[s] - highest);
    for (float& share : p) share /= total;
    return highest + gate_log(total);
  }

  const MeasureGateRows& a_;
  int64_t group_;
  Place place_;
  RowSums& sums_;
  int64_t d_;
  int64_t kv_heads_;
  int64_t kv_head_;
  int64_t heads_;
  int64_t padded_;
  std::vector<float> q_;       // [heads, padded], scaled
  std::vector<float> scores_;  // [heads, kPanelKeys]
  std::vector<Full> full_;
  std::vector<float> lse_;
  const int32_t* blocks_ = nullptr;
  const float* z_ = nullptr;
  int64_t count_ = 0;
  bool dropped_ = false;
  float tau_ = 0;
  float width_ = 1;
  // Of the block that is being worked on.
  bool attended_ = false;
  float log_gate_ = 0;
  GateFigures::Place figure_ = GateFigures::kSink;
};

void add_map(const MeasureGateRows& a, int64_t group, const RowSums& row) {
  float* const to = a.map.as<float>().data() + (group * kMapBins + row.map_row) * (kMapBins + 1);
  for (int64_t bin = 0; bin < kMapBins; ++bin) {
    to[bin] += static_cast<float>(row.map[static_cast<size_t>(bin)]);
  }
  to[kMapBins] += 1;
}

}  // namespace

void measure_gate_rows(ThreadPool& threads, const MeasureGateRows& a) {
  const auto groups = static_cast<int64_t>(a.groups.size());
  const int64_t samples = a.samples.shape()[0];
  std::vector<RowSums> rows(static_cast<size_t>(groups * samples));
  threads.for_each(groups * samples, [&](int64_t task) {
    const int64_t sample = task % samples;
    RowSums& row = rows[static_cast<size_t>(task)];
    const Place place = find_place(a, sample);
    row.map_row = (place.shift + place.at) * kMapBins / a.sequence_length;
    with_float_type(a.q.dtype(),
                    [&]<class T>() { RowMeasure<T>(a, task / samples, place, row).run(); });
  });
  const auto figures = a.figures.as<float>();
  for (int64_t group = 0; group < groups; ++group) {
    std::array<double, GateFigures::kTiles> sums{};
    for (int64_t sample = 0; sample < samples; ++sample) {
      const RowSums& row = rows[static_cast<size_t>(group * samples + sample)];
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += row.figures[i];
      if (!a.map.empty()) add_map(a, group, row);
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      figures[static_cast<size_t>(group * GateFigures::kSize) + i] += static_cast<float>(sums[i]);
    }
  }
}

}  // namespace tessera::cpu
