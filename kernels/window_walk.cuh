#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attention_forward.cuh"

/// Which panels the queries of causal attention with a window see.
namespace tessera::gpu {

/// The rule of kernels/attention.h.
struct Reach {
  int window;
  int sink_tokens;
};

/// The runs of a segment, panel by panel from each one's first key.
template <int kPanel>
class WindowWalk {
 public:
  using Arguments = Reach;
  using Sums = NoSums;

  __device__ WindowWalk(const Reach& reach, const GridView& grid, const QueryTile& tile,
                        const LaneRows& rows)
      : reach_(reach),
        runs_(grid.runs),
        rows_(rows),
        end_(tile.end()),
        lowest_(tile.first - (reach.window - 1)),
        run_(grid.runs.begin_of(tile.segment)),
        end_run_(grid.runs.begin_of(tile.segment + 1)) {
    enter_run();
  }

  __device__ bool next(Panel& panel) {
    while (run_ < end_run_) {
      // Between the sinks and the window nothing is seen.
      if (key_ >= reach_.sink_tokens && key_ + kPanel <= lowest_) {
        key_ += (lowest_ - key_) / kPanel * kPanel;
      }
      if (key_ < last_) {
        panel = {key_, std::min(kPanel, last_ - key_), origin_ + key_};
        key_ += kPanel;
        return true;
      }
      ++run_;
      enter_run();
    }
    return false;
  }

  __device__ PanelView view(const Panel& panel) const {
    PanelView view;
    view.strips = seen_strips(rows_.lowest - panel.first, rows_.highest - panel.first, panel.count,
                              reach_.window, reach_.sink_tokens - panel.first, kPanel);
    for (int half = 0; half < 2; ++half) {
      view.seen[half] = SeenKeys::of(rows_.position[half], panel.first, panel.count, reach_.window,
                                     reach_.sink_tokens);
      view.bias[half] = 0;
    }
    return view;
  }
  __device__ NoSums sums(const Panel&) const { return {}; }

 private:
  __device__ void enter_run() {
    if (run_ >= end_run_) return;
    key_ = runs_.first(run_);
    origin_ = runs_.origin(run_);
    last_ = std::min(end_, runs_.end(run_));
  }

  const Reach& reach_;
  const Stretches& runs_;
  const LaneRows& rows_;
  int end_;     // behind the last position that is seen
  int lowest_;  // the first position of the tile's window
  int run_;
  int end_run_;
  int key_ = 0;
  int origin_ = 0;
  int last_ = 0;
};

template <class A>
Reach reach_of(const A& a) {
  return {static_cast<int>(std::min<int64_t>(a.window, kMostReach)),
          static_cast<int>(std::min<int64_t>(a.sink_tokens, kMostReach))};
}

}  // namespace tessera::gpu
