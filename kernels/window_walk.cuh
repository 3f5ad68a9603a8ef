#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/key_panel.cuh"

namespace tessera::gpu {

/// Arguments of kernels/attention.h, at most kMostReach each.
struct Reach {
  int window;
  int sink_tokens;
};

/// Causal attention with a window: the runs of a segment, panel by panel from each one's first key,
/// between the beginning of the tile's window and its last token, and the sink tokens before. Only
/// panels at these edges hide anything.
template <int kPanel>
class WindowWalk {
 public:
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
        panel = panel_ = {key_, std::min(kPanel, last_ - key_), origin_ + key_};
        key_ += kPanel;
        return true;
      }
      ++run_;
      enter_run();
    }
    return false;
  }

  /// Of the panel that `next` told last: whether some row of the unit sees it, the same answer in
  /// all of its lanes; and the number of keys from its first to the end of the run, which may be
  /// more than a panel.
  __device__ bool unit_sees() const {
    return !seen_strips(rows_.lowest - panel_.first, rows_.highest - panel_.first, panel_.count,
                        reach_.window, reach_.sink_tokens - panel_.first, kPanel)
                .none();
  }
  __device__ int keys_of_run() const { return run_end_ - panel_.first; }

  __device__ PanelView view() const {
    const Panel& panel = panel_;
    PanelView view;
    view.strips = seen_strips(rows_.lowest - panel.first, rows_.highest - panel.first, panel.count,
                              reach_.window, reach_.sink_tokens - panel.first, kPanel);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      view.seen[half] = SeenKeys::of(rows_.position[half], panel.first, panel.count, reach_.window,
                                     reach_.sink_tokens);
      view.bias[half] = 0;
    }
    return view;
  }

 private:
  __device__ void enter_run() {
    if (run_ >= end_run_) return;
    key_ = runs_.first(run_);
    origin_ = runs_.origin(run_);
    run_end_ = runs_.end(run_);
    last_ = std::min(end_, run_end_);
  }

  Panel panel_;
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
  int run_end_ = 0;
};

}  // namespace tessera::gpu
